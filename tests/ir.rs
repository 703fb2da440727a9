//! Tests of ir.
