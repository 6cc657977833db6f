"""What a job did when, written down: visits, copies and loading, as a trace that other programs show."""
