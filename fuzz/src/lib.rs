//! What the fuzz targets do. Each target is one function over bytes, so that a fuzzing engine, a
//! plain test over the committed corpora and a debugger run the same code.
//!
//! | module | what comes in | what is asked of it |
//! |---|---|---|
//! | [`batch`] | bytes from a disk or a network | what passes is what `seal` would have written |
//! | [`records`] | a batch's body | agrees with a second reader that is written plainly |
//! | [`frame`] | a connection's bytes | what passes is what the encoder would have sent |
//! | [`handshake`] | a primary and a replica that talk, and what happens to their frames | no state can be broken; if nothing was changed, both hold one history |
//! | [`client`] | what a primary receives from clients, who change slots and settings too | one answer for each request, records in order, memory bounded; what is refused changes nothing, what is done survives a start |
//! | [`superblock`] | two copies of a superblock | what passes is what `encode` would have written |
//! | [`recovery`] | what a device gives back of a log | ends at a batch, and opens to the same end once it is cut |
//! | [`open`] | a superblock and a slice that need not fit together | an answer or a typed error |
//! | [`config`] | a configuration file | settings, or an error in one line that names a place |
//! | [`policy`] | a commit policy, a size, a duration as text | both parsers of policies agree |
//! | [`encode`] | values | decoding gives the value back exactly if it is within its bounds |
//! | [`gate`] | events of the commit gate | it agrees with a model that looks at everything every time |
//!
//! Besides a panic, two things are failures everywhere: memory beyond what [`alloc`] allows for the
//! bytes received, and more steps than a constant times the bytes.

pub mod alloc;
pub mod asks;
pub mod batch;
pub mod client;
pub mod config;
pub mod edits;
pub mod encode;
pub mod frame;
pub mod gate;
pub mod gate_model;
pub mod handshake;
pub mod mend;
pub mod node;
pub mod open;
pub mod operator;
pub mod policy;
pub mod records;
pub mod recovery;
pub mod superblock;

/// A target: its name, which is its corpus's too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 12] = [
    ("batch", batch::run),
    ("client", client::run),
    ("config", config::run),
    ("encode", encode::run),
    ("frame", frame::run),
    ("gate", gate::run),
    ("handshake", handshake::run),
    ("open", open::run),
    ("policy", policy::run),
    ("records", records::run),
    ("recovery", recovery::run),
    ("superblock", superblock::run),
];
