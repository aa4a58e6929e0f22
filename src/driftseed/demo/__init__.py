"""The whole way of an update on one machine, with a hub that dies and a member that attacks."""
