"""What every page shares: one offline HTML file, its look, its charts and its pictures."""
