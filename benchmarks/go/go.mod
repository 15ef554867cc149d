module atoll/benchmarks/go

go 1.23

require atoll/clients/go v0.0.0

replace atoll/clients/go => ../../clients/go
