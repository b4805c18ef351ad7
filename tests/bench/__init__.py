import store  # before torch: it sets how OpenMP threads wait  # noqa: F401
