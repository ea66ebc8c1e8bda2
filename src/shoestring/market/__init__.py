"""What machines, services and APIs cost, how we know, and what to choose.

offers    one machine at one price, and the checks every table passes
table     the dated snapshot, and what a refresh has fetched
sources   one file a seller
prices    the price of a run's machine
managed   fine-tuning services and their rules of billing
terms     interruptions, boot, billing units and the like, each with range, source and date
work      what training a model takes on one kind of machine
options   every way to train, or why it is out
choice    the Pareto list and the pick
serving   ways to answer requests, by the month
total     the bill over the months, and where training begins to pay
"""
