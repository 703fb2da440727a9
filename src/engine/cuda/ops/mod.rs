//! One launcher for each operation of `Backend`, with the name and the parameters of the trait's
//! method: grid, block and arguments of its kernels. Launches cover `Cuda::capacity` rows; kernels
//! read the true count from `Cuda::counts`.
