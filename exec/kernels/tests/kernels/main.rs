//! Every kernel against plain loops in f64, on a Vulkan device; a software one will do (Mesa's lavapipe).
//!
//! Without any the cases say SKIP; `MLOC_NO_SKIP=1` makes that a failure.

mod attention;
mod cross_entropy;
mod device;
mod four_bit;
mod gradient;
mod paged;
mod rms_norm;
mod rope;
mod swiglu;
