//! A kernel that writes where nothing is, through the driver's own interface: nothing of CUDA is linked. After it every call
//! of the process to its card fails, as after an engine's own slip.

#![expect(unsafe_code, reason = "a driver's functions are C's")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::transmute as typed;
use std::ptr::null_mut;

use aihost_plugin_api::{Error, ErrorKind};

/// What the driver says of such a write.
const ILLEGAL_ADDRESS: c_int = 700;
/// What a stand-in for the driver's library says, as there is one where programs for cards are linked.
const STUB_LIBRARY: c_int = 34;
/// Stores a word at address 8. Of the oldest kind that today's drivers compile.
const KERNEL: &CStr = c".version 6.0
.target sm_50
.address_size 64
.visible .entry poison()
{
    .reg .b64 %address;
    .reg .b32 %word;
    mov.u64 %address, 8;
    mov.u32 %word, 1;
    st.global.u32 [%address], %word;
    ret;
}
";

type Handle = *mut c_void;

/// Spoils this process's context of the first card. Without a driver it says what a driver would.
pub(crate) fn poison() -> Error {
    // SAFETY: the driver's library may be opened at any time; the name is ended by a zero.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    let said = if library.is_null() { Ok(ILLEGAL_ADDRESS) } else { launch(library) };
    match said {
        Ok(ILLEGAL_ADDRESS | STUB_LIBRARY) => Error::new(
            ErrorKind::Device,
            "the device failed, and this worker with it: CUDA_ERROR_ILLEGAL_ADDRESS, as asked",
        ),
        Ok(code) => {
            Error::internal(format!("the kernel was to fail with {ILLEGAL_ADDRESS}, and the driver says {code}"))
        }
        Err(name) => Error::internal(format!("the driver has no function {name:?}")),
    }
}

/// What the driver says when the kernel has run.
fn launch(library: Handle) -> Result<c_int, &'static CStr> {
    let find = |name: &'static CStr| {
        // SAFETY: the library is open and never closed; the name is ended by a zero.
        let found = unsafe { libc::dlsym(library, name.as_ptr()) };
        if found.is_null() { Err(name) } else { Ok(found) }
    };
    let [init, get, retain, current] =
        [find(c"cuInit")?, find(c"cuDeviceGet")?, find(c"cuDevicePrimaryCtxRetain")?, find(c"cuCtxSetCurrent")?];
    let [load, function, launch, wait] = [
        find(c"cuModuleLoadData")?,
        find(c"cuModuleGetFunction")?,
        find(c"cuLaunchKernel")?,
        find(c"cuCtxSynchronize")?,
    ];
    type Launch = extern "C" fn(
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut Handle,
        *mut Handle,
    ) -> c_int;
    // SAFETY: these are the driver's functions of these names, with the types that cuda.h gives them.
    let (init, get, retain, current, load, function, launch, wait) = unsafe {
        (
            typed::<Handle, extern "C" fn(c_uint) -> c_int>(init),
            typed::<Handle, extern "C" fn(*mut c_int, c_int) -> c_int>(get),
            typed::<Handle, extern "C" fn(*mut Handle, c_int) -> c_int>(retain),
            typed::<Handle, extern "C" fn(Handle) -> c_int>(current),
            typed::<Handle, extern "C" fn(*mut Handle, *const c_char) -> c_int>(load),
            typed::<Handle, extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int>(function),
            typed::<Handle, Launch>(launch),
            typed::<Handle, extern "C" fn() -> c_int>(wait),
        )
    };
    let (mut device, mut context, mut module, mut kernel) = (0, null_mut(), null_mut(), null_mut());
    let said = |code: c_int| if code == 0 { Ok(()) } else { Err(code) };
    let mut run = || {
        said(init(0))?;
        said(get(&raw mut device, 0))?;
        said(retain(&raw mut context, device))?;
        said(current(context))?;
        said(load(&raw mut module, KERNEL.as_ptr()))?;
        said(function(&raw mut kernel, module, c"poison".as_ptr()))?;
        said(launch(kernel, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut()))?;
        said(wait())
    };
    Ok(run().err().unwrap_or(0))
}
