"""Methods x label budgets x seeds under one protocol: plan, units of work, comparison, report."""
