"""The labelling page: who is asked what, the file of answers, the server, and the page itself."""
