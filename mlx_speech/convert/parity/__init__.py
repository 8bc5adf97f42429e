"""The converted model beside its original: what is common in `measures`, and a file for every family."""
