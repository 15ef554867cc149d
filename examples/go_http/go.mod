module atoll/examples/go_http

go 1.23

require atoll/clients/go v0.0.0

replace atoll/clients/go => ../../clients/go
