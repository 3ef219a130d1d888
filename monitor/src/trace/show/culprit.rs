//! Which frame of a stack is the code that asked, and which are what it asked through: allocators, containers of a standard
//! library, a language's run time. By name, so it is a hint; the stack is shown whole.

use super::name::base;
use crate::trace::growth::{Place, Stack};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Hands out memory.
    Allocator,
    /// A standard library or a run time.
    Runtime,
    /// Everything else.
    Own,
}

/// The first frame, from the innermost on, that is neither allocator nor run time; if all are, the first that is no allocator;
/// if all are that, the innermost. `None` for a stack without frames.
pub(crate) fn culprit(stack: &Stack) -> Option<usize> {
    let parts: Vec<_> = stack.frames.iter().map(part).collect();
    let own = parts.iter().position(|&part| part == Part::Own);
    own.or_else(|| parts.iter().position(|&part| part == Part::Runtime)).or((!parts.is_empty()).then_some(0))
}

/// Whole names of functions that hand out memory, without arguments.
const ALLOCATORS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "valloc",
    "pvalloc",
    "mmap",
    "mmap64",
    "mremap",
    "brk",
    "sbrk",
    "operator new",
    "operator new[]",
    "runtime.mallocgc",
    "runtime.newobject",
    "runtime.makeslice",
    "runtime.growslice",
    "AllocateHeap",
    "Unsafe_AllocateMemory0",
    "xmalloc",
    "xcalloc",
    "xrealloc",
    "xstrdup",
    "strdup",
    "strndup",
    "asprintf",
    "vasprintf",
    "getline",
    "getdelim",
    "apr_palloc",
    "apr_pcalloc",
    "ngx_alloc",
    "ngx_calloc",
    "ngx_palloc",
    "ngx_pnalloc",
    "ngx_pcalloc",
    "_emalloc",
    "_ecalloc",
    "_erealloc",
    "ruby_xmalloc",
    "ruby_xcalloc",
    "ruby_xrealloc",
    "PyMem_Malloc",
    "PyMem_Calloc",
    "PyMem_Realloc",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
];
/// How their names begin where there are many.
const ALLOCATOR_PREFIXES: &[&str] = &[
    "__libc_",
    "_int_malloc",
    "_int_realloc",
    "__GI___libc_",
    "__interceptor_",
    "je_",
    "tc_",
    "mi_",
    "sysmalloc",
    "os::malloc",
    "os::realloc",
    "g_malloc",
    "g_realloc",
    "g_try_malloc",
    "g_slice_alloc",
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_realloc",
    "__rust_alloc",
    "__rust_realloc",
    "__rdl_alloc",
    "__rdl_realloc",
    "__rg_alloc",
    "__rg_realloc",
    "__rustc",
    "alloc::alloc::",
    "alloc::raw_vec::",
    "_PyMem_",
    "_PyObject_Malloc",
    "tcmalloc::",
    "_mi_",
];
const RUNTIME_PREFIXES: &[&str] = &[
    "std::",
    "core::",
    "alloc::",
    "hashbrown::",
    "__gnu_cxx::",
    "boost::container::",
    "runtime.",
    "runtime/",
    "internal/",
    "bytes.",
    "strings.",
    "slices.",
    "maps.",
    "reflect.",
    "sync.",
    "Py",
    "_Py",
    "Perl_",
    "rb_",
    "objspace_",
    "zend_",
    "v8::",
    "JVM_",
    "jni_",
];
/// Libraries of which no function is a service's own.
const RUNTIME_MODULES: &[&str] = &[
    "libc.so",
    "libc-",
    "ld-linux",
    "ld-musl",
    "libc.musl",
    "libpthread",
    "libstdc++",
    "libc++",
    "libgcc_s",
    "libjemalloc",
    "libtcmalloc",
    "libmimalloc",
    "libasan",
    "libglib-2",
    "libgobject-2",
];

fn part(place: &Place) -> Part {
    let begins = |text: &str, list: &[&str]| list.iter().any(|prefix| text.starts_with(prefix));
    if let Some(function) = place.function.as_deref() {
        let name = bare(function);
        if ALLOCATORS.contains(&name) || begins(name, ALLOCATOR_PREFIXES) {
            return Part::Allocator;
        }
        if begins(name, RUNTIME_PREFIXES) || is_of_rust_s_library(name) {
            return Part::Runtime;
        }
    }
    match place.module.as_deref() {
        Some(module) if begins(base(module), RUNTIME_MODULES) => Part::Runtime,
        _ => Part::Own,
    }
}

/// `<alloc::vec::Vec<T> as core::clone::Clone>::clone`, `<[T]>::to_vec`, `<T as core::convert::Into<U>>::into`: of the library are
/// its own types, and its traits for types that have no other home.
fn is_of_rust_s_library(name: &str) -> bool {
    let Some(inside) = name.strip_prefix('<') else { return false };
    let inside = inside.trim_start_matches(['&', '*']).trim_start_matches("mut ");
    let of_library =
        |text: &str| ["alloc::", "core::", "std::", "hashbrown::"].iter().any(|home| text.starts_with(home));
    let (who, what) = inside.split_once(" as ").unwrap_or((inside, "core::"));
    let homeless = who.starts_with(['[', '(']) || !who.contains("::");
    of_library(inside) || homeless && of_library(what)
}

/// A demangled name without result type and arguments: `void std::vector<int>::push_back(int&&)` → `std::vector<int>::push_back`.
fn bare(function: &str) -> &str {
    let bytes = function.as_bytes();
    let (mut depth, mut begin, mut at) = (0_u32, 0, 0);
    while at < bytes.len() {
        let rest = &function[at..];
        if depth == 0 && rest.starts_with("operator") && (at == begin || bytes[at - 1] == b':') {
            // Its name has brackets and blanks of its own; the arguments begin behind them.
            let name = at + "operator".len();
            let arguments = function[name..].strip_prefix("()").map_or(name, |_| name + 2);
            return &function[begin..function[arguments..].find('(').map_or(function.len(), |found| arguments + found)];
        }
        match bytes[at] {
            b'(' if depth == 0 && rest.starts_with("(anonymous namespace)") => at += "(anonymous namespace)".len() - 1,
            // As Go writes a method's receiver.
            b'(' if depth == 0 && at > begin && bytes[at - 1] == b'.' => depth += 1,
            b'(' if depth == 0 => return function[begin..at].trim_end(),
            b'<' | b'(' | b'{' | b'[' => depth += 1,
            b'>' if at > 0 && bytes[at - 1] == b'-' => {}
            b'>' | b')' | b'}' | b']' => depth = depth.saturating_sub(1),
            b' ' if depth == 0 => begin = at + 1,
            _ => {}
        }
        at += 1;
        while !function.is_char_boundary(at) {
            at += 1;
        }
    }
    &function[begin..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(function: &str) -> Place {
        Place { function: Some(function.to_owned()), ..Place::default() }
    }

    #[test]
    fn results_and_arguments_are_no_part_of_a_name() {
        for (function, want) in [
            ("malloc", "malloc"),
            ("operator new(unsigned long)", "operator new"),
            ("operator new[](unsigned long)", "operator new[]"),
            (
                "void std::vector<int, std::allocator<int> >::push_back(int&&)",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            ("std::pair<int, int> my::insert<int>(int)", "my::insert<int>"),
            ("my::Call::operator()(int)", "my::Call::operator()"),
            ("my::operator<<(std::ostream&, int)", "my::operator<<"),
            ("(anonymous namespace)::fill(int)", "(anonymous namespace)::fill"),
            ("main.(*Cache).insert", "main.(*Cache).insert"),
            ("<alloc::vec::Vec<T> as core::clone::Clone>::clone", "<alloc::vec::Vec<T> as core::clone::Clone>::clone"),
            ("web::handle::{{closure}}", "web::handle::{{closure}}"),
            ("größe(int)", "größe"),
            ("", ""),
        ] {
            assert_eq!(bare(function), want, "{function}");
        }
    }

    #[test]
    fn own_code_is_told_from_what_it_asked_through() {
        for (part_is, functions) in [
            (
                Part::Allocator,
                &["malloc", "operator new(unsigned long)", "__libc_malloc", "runtime.mallocgc", "__rust_alloc"][..],
            ),
            (
                Part::Runtime,
                &[
                    "void std::vector<int>::_M_realloc_insert<int const&>(int const&)",
                    "<alloc::vec::Vec<T,A> as core::clone::Clone>::clone",
                    "<[T]>::to_vec",
                    "<T as core::convert::Into<U>>::into",
                    "<&mut alloc::string::String as core::fmt::Write>::write_str",
                    "hashbrown::raw::RawTable<T,A>::reserve_rehash",
                    "strings.(*Builder).grow",
                    "_PyEval_EvalFrameDefault",
                ],
            ),
            (
                Part::Own,
                &[
                    "web::cache::insert",
                    "<web::Cache as core::clone::Clone>::clone",
                    "std::pair<int, int> my::insert<int>(int)",
                    "main.(*Cache).insert",
                    "(anonymous namespace)::fill(int)",
                    "mallocate_all",
                    "stdlib_user",
                ],
            ),
        ] {
            for function in functions {
                assert_eq!(part(&called(function)), part_is, "{function}");
            }
        }
        let nameless = |module: &str| Place { module: Some(module.to_owned()), ..Place::default() };
        assert_eq!(part(&nameless("/lib/x86_64-linux-gnu/libc.so.6")), Part::Runtime);
        assert_eq!(part(&nameless("/usr/bin/web")), Part::Own);
    }

    #[test]
    fn the_first_frame_of_its_own_is_named_or_the_best_there_is() {
        let stack = |names: &[&str]| Stack {
            bytes_per_hour: 1.0,
            allocations: 1,
            bytes: 1,
            frames: names.iter().map(|name| called(name)).collect(),
            whole: true,
        };
        assert_eq!(culprit(&stack(&["malloc", "std::string::reserve(int)", "my::fill()", "main"])), Some(2));
        assert_eq!(culprit(&stack(&["malloc", "PyDict_SetItem", "_PyEval_EvalFrameDefault"])), Some(1));
        assert_eq!(culprit(&stack(&["malloc", "operator new(unsigned long)"])), Some(0));
        assert_eq!(culprit(&stack(&[])), None);
    }
}
