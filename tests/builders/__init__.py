"""What tests are made with: configurations, training commands, inputs of estimators, runs and evaluations on disk."""
