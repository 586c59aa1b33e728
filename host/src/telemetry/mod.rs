//! Log set-up. A leaf: it knows no other room.
