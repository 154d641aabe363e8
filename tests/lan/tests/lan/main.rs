//! What users do, on several hosts with the real binaries. One folder, one binary, so that it is built and linked once.

#![allow(clippy::unwrap_used, clippy::panic_in_result_fn)]

mod chaos;
mod daemon;
mod discovery;
mod discs;
mod doctor;
mod durability;
mod failing;
mod giving_up;
mod hostile;
mod images;
mod leases;
mod load;
mod logout;
mod main_job;
mod memory;
mod nbd;
mod pairing;
mod proof;
mod rig;
mod scene;
mod sleep;
mod slow;
mod startup;
mod survive;
mod swap;
mod witness;
