//! The export macro: the descriptor in its ELF section, and the root module behind its symbol.

/// Makes a `cdylib` an aihost plugin.
///
/// `plugin` is a type that implements [`Plugin`](crate::Plugin); the other keys become the manifest, which is read
/// without running the plugin. Keys after `devices` are optional, in this order: `formats`, `max_concurrency` (1),
/// `parks` (false), `memory_static` (false), `permissions`.
#[macro_export]
macro_rules! export_plugin {
    (
        plugin: $plugin:ty,
        id: $id:literal,
        kinds: [$($kind:literal),* $(,)?],
        devices: [$($device:literal),* $(,)?]
        $(, formats: [$($format:literal),* $(,)?])?
        $(, max_concurrency: $concurrency:literal)?
        $(, parks: $parks:literal)?
        $(, memory_static: $memory_static:literal)?
        $(, permissions: [$($permission:literal),* $(,)?])?
        $(,)?
    ) => {
        #[allow(unreachable_pub, reason = "the symbols the host looks for; the macro is the only one to write them")]
        const _: () = {
            const MANIFEST: &str = concat!(
                "{\"id\":\"", $id,
                "\",\"version\":\"", env!("CARGO_PKG_VERSION"),
                "\",\"authors\":\"", env!("CARGO_PKG_AUTHORS"),
                "\",\"license\":\"", env!("CARGO_PKG_LICENSE"),
                "\",\"description\":\"", env!("CARGO_PKG_DESCRIPTION"),
                "\",\"kinds\":", stringify!([$($kind),*]),
                ",\"devices\":", stringify!([$($device),*]),
                $(",\"formats\":", stringify!([$($format),*]),)?
                $(",\"max_concurrency\":", stringify!($concurrency),)?
                $(",\"parks\":", stringify!($parks),)?
                $(",\"memory_static\":", stringify!($memory_static),)?
                $(",\"permissions\":", stringify!([$($permission),*]),)?
                "}"
            );

            // SAFETY: a section of its own name, of plain bytes; nothing else writes into it.
            #[unsafe(link_section = ".aihost.plugin")]
            #[used]
            static DESCRIPTOR: $crate::abi::Descriptor<{ MANIFEST.len() }> = $crate::abi::Descriptor::new(MANIFEST);

            extern "C" fn describe() -> $crate::private::abi_stable::std_types::RVec<u8> {
                $crate::sdk::glue::describe::<$plugin>()
            }

            extern "C" fn instantiate(
                host: $crate::abi::RawHostArc,
                options: $crate::private::abi_stable::std_types::RSlice<'_, u8>,
            ) -> $crate::private::abi_stable::std_types::RResult<$crate::abi::RawModelBox, $crate::abi::RawError> {
                $crate::sdk::glue::instantiate::<$plugin>(host, options)
            }

            extern "C" fn query(
                _id: $crate::private::abi_stable::std_types::RStr<'_>,
            ) -> $crate::private::abi_stable::std_types::ROption<u64> {
                $crate::private::abi_stable::std_types::ROption::RNone
            }

            fn root() -> $crate::abi::Root_Ref {
                use $crate::private::abi_stable::prefix_type::PrefixTypeTrait;
                $crate::abi::Root { describe, instantiate, query }.leak_into_prefix()
            }

            extern "C" fn erased_root() -> $crate::private::abi_stable::library::RootModuleResult {
                $crate::private::abi_stable::library::__call_root_module_loader(root)
            }

            // SAFETY: the symbol name abi_stable looks for; the constructor's type is the one whose layout the header carries.
            #[unsafe(no_mangle)]
            pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::private::abi_stable::library::LibHeader = unsafe {
                $crate::private::abi_stable::library::LibHeader::from_constructor::<$crate::abi::Root_Ref>(
                    erased_root,
                    $crate::private::abi_stable::library::CheckTypeLayout::Yes,
                )
            };
        };
    };
}
