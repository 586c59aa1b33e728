//! Graphics cards on paper: the few functions of NVIDIA's management library that a host calls, under its name.
//!
//! The file that `NVIDIA_FIXTURE_CARDS` names has a line for each card: its total and its free bytes, and for each process on it
//! its number and its bytes; behind them `hangs`, if it answers nothing about its memory, or the UUID of a slice of a card,
//! which begins with `MIG-`. It is read at each call, so a test can have a card filled and emptied.

#![allow(
    unsafe_code,
    non_snake_case,
    clippy::missing_safety_doc,
    missing_docs,
    reason = "names and contracts are NVIDIA's"
)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::time::Duration;

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const NOT_FOUND: c_int = 6;

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

/// How often a card that hangs is looked at.
const POLL: Duration = Duration::from_millis(5);

/// The words of each card's line.
fn words() -> Vec<Vec<String>> {
    let file = std::env::var_os("NVIDIA_FIXTURE_CARDS").and_then(|file| std::fs::read_to_string(file).ok());
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    file.unwrap_or_default().lines().map(words).filter(|card: &Vec<String>| card.len() > 1).collect()
}

/// The numbers of each line.
fn lines() -> Vec<Vec<u64>> {
    words().iter().map(|line| line.iter().map_while(|word| word.parse().ok()).collect()).collect()
}

/// Total and free bytes of each card and slice.
fn cards() -> Vec<[u64; 2]> {
    lines().into_iter().map(|card| [card[0], card[1]]).collect()
}

fn is_slice(line: &[String]) -> bool {
    line.iter().any(|word| word.starts_with("MIG-"))
}

/// Comes back when the card's line does not say that it hangs.
fn wait_while_it_hangs(device: *mut c_void) {
    while words().get(device as usize - 1).is_some_and(|line| line.iter().any(|word| word == "hangs")) {
        std::thread::sleep(POLL);
    }
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
    unsafe { *count = words().iter().filter(|line| !is_slice(line)).count() as c_uint };
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

/// Slices of cards are found by their names alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut *mut c_void) -> c_int {
    // SAFETY: the caller gives a text that is ended by a zero.
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    let Some(line) = words().iter().position(|line| line.contains(&uuid.to_string())) else { return NOT_FOUND };
    // SAFETY: the caller gives a place for a handle.
    unsafe { *device = (line + 1) as *mut c_void };
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
    wait_while_it_hangs(device);
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
