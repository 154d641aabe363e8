//! The device-specific headers, one module a class. A class is added by one module and one code.

pub mod block;
pub mod optical;
pub mod usb;
