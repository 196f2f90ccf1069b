"""The sweep over the model libraries: every family is rewired and checked, and the outcome written down."""
