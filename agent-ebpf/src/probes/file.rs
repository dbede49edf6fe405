//! The sensor `file`: who opens files, and who makes their content go.
