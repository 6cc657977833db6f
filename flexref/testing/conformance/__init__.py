"""The porting kit: the contract against any installed port, each clause in a process of its own, as a report."""
