"""An example of a package that extends Secateur through entry points."""
