"""The report of a job: figures from its journal and its answers, and one page that shows them."""
