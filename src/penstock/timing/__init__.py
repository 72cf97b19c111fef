"""How latency, memory and throughput are taken, apart from what is done with them."""
