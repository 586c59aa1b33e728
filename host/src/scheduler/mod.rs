//! Who may use which device when: a pure state machine, event in, effects out.
