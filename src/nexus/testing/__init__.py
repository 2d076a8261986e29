"""Fakes and contract suites: one of each for every port."""
