module atoll/clients/go

go 1.23
