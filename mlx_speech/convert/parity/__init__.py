"""The converted model beside its original."""
