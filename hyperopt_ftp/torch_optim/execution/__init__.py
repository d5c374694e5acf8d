"""How a step is executed: backends, state in the form that they take, the rule that holds the weights."""
