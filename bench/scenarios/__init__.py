"""The scenarios of the bench, one module each: `run(stage, report)`."""
