//! The sensor `tcp`: sessions, failed connects, resets, retransmits.
