"""What makes a run folder, a folder of predictions or a pool of subjects: functions that take parts."""
