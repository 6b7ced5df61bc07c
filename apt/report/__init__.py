"""Reports: results as figures with charts, in one offline HTML file and in JSON."""
