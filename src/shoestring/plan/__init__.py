"""What each rung will need, take and cost, before any money is spent.

catalogue    the models of the table, by licence, size and what a GPU holds
shapes       parameters of a model, from its config.json or the project's table
devices      memory and peak rates of a machine
settings     every training value, with its reason
memory       peak bytes of Shoestring's own training
stacks       what other training stacks keep in memory
question     a fine-tune in the words of predict_memory, checked
predict      peak bytes under any profiled stack
speed        tokens a second under any profiled stack
throughput   seconds
ladder_plan  the rungs in order of cost
lengths      tokens of a text without its tokenizer
spot         machines that may be taken away: billed hours, the chance of being done in time
decode       requests a second of a serving GPU
figures      a number with unit, source and age
"""
