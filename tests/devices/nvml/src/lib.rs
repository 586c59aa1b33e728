//! Graphics cards on paper: the few functions of NVIDIA's management library that a host calls, under its name.
//!
//! The file that `AIHOST_FIXTURE_NVML` names has a line for each card: its total and its free bytes, and for each process on it
//! its number and its bytes. It is read at each call, so a test can have a card filled and emptied.

#![allow(
    unsafe_code,
    non_snake_case,
    clippy::missing_safety_doc,
    missing_docs,
    reason = "names and contracts are NVIDIA's"
)]

use std::ffi::{c_char, c_int, c_uint, c_void};

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;

/// `nvmlMemory_v2_t`: bytes.
#[derive(Debug)]
#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// `nvmlProcessInfo_t`.
#[derive(Debug)]
#[repr(C)]
pub struct Process {
    number: c_uint,
    bytes: u64,
    instance: c_uint,
    compute_instance: c_uint,
}

const INSUFFICIENT_SIZE: c_int = 7;

/// The numbers of each card's line.
fn lines() -> Vec<Vec<u64>> {
    let file = std::env::var_os("AIHOST_FIXTURE_NVML").and_then(|file| std::fs::read_to_string(file).ok());
    let numbers = |line: &str| line.split_whitespace().map_while(|number| number.parse().ok()).collect();
    file.unwrap_or_default().lines().map(numbers).filter(|card: &Vec<u64>| card.len() > 1).collect()
}

/// Total and free bytes of each card.
fn cards() -> Vec<[u64; 2]> {
    lines().into_iter().map(|card| [card[0], card[1]]).collect()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    // SAFETY: the caller gives a place for a number.
    unsafe { *count = cards().len() as c_uint };
    SUCCESS
}

/// A card's handle is its number and one, since a null handle is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int {
    if index as usize >= cards().len() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller gives a place for a handle.
    unsafe { *device = (index as usize + 1) as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, text: *mut c_char, length: c_uint) -> c_int {
    let uuid = format!("GPU-{}\0", device as usize - 1);
    if uuid.len() > length as usize {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller gives `length` bytes, which suffice.
    unsafe { std::ptr::copy_nonoverlapping(uuid.as_ptr().cast(), text, uuid.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut Memory) -> c_int {
    let Some([total, free]) = cards().get(device as usize - 1).copied() else { return INVALID_ARGUMENT };
    // SAFETY: the caller gives a place for the structure.
    unsafe { (*memory).total = total };
    // SAFETY: as above.
    unsafe { (*memory).free = free };
    // SAFETY: as above.
    unsafe { (*memory).used = total - free };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    processes: *mut Process,
) -> c_int {
    let Some(card) = lines().into_iter().nth(device as usize - 1) else { return INVALID_ARGUMENT };
    let (pairs, _) = card[2..].as_chunks::<2>();
    // SAFETY: the caller gives a place for a number.
    let room = unsafe { std::mem::replace(&mut *count, pairs.len() as c_uint) } as usize;
    if pairs.len() > room {
        return INSUFFICIENT_SIZE;
    }
    for (at, [number, bytes]) in pairs.iter().enumerate() {
        let process = Process { number: *number as c_uint, bytes: *bytes, instance: 0, compute_instance: 0 };
        // SAFETY: the caller gives room for as many as it said, which is more than `at`.
        unsafe { processes.add(at).write(process) };
    }
    SUCCESS
}
