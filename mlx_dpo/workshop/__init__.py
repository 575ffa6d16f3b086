"""Making preference data: imported, sampled, judged by a machine, labelled by a person."""
