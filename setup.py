"""Build of the extension modules.

The folder of a C file determines its extension, so a new file needs no change here:

    csrc/<name>/**/*.c      -> _<name>      (_pickle, _unpickle, _ndarray)
    csrc/store/**/*.c       -> _core

Every ``pyx/pyray_ser/<name>.pyx`` becomes the extension ``pyray_ser.<name>``; a large one is written in parts that it
includes (``pyx/pyray_ser/_core/*.pxi``).

Switches, all by environment variable:

    PYRAY_SER_DEBUG=1             -O1 -g, assertions, failpoints compiled in (PRS_DEBUG=1)
    PYRAY_SER_SANITIZE=a,b        -fsanitize=a,b (``address,undefined`` or ``thread``)
    PYRAY_SER_COVERAGE=1          gcov counters in C, line tracing in Cython
    PYRAY_SER_ANNOTATE=1          Cython's annotated HTML beside the generated C
    PYRAY_SER_PUBLIC_API=1        no internals of CPython are used, as on an unknown version of Python
    PYRAY_SER_INTRUDER=1          calls that can run Python code run an intruder first (csrc/common/foreign.h)
    PYRAY_SER_EXTENSIONS=_a,_b    only these extensions
    PYRAY_SER_WERROR=1            warnings in csrc are errors
    PYRAY_SER_JOBS=N              compilers run at once (default: the CPUs there are)
"""

import os
import runpy
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

PACKAGE = "pyray_ser"
NEEDS_NUMPY = {"_ndarray", "_pickle", "_unpickle"}
FOLDER_OF = {"_core": "store"}  # extensions that are not named after their folder of csrc


def switch(name):
    return os.environ.get(f"PYRAY_SER_{name}", "") not in ("", "0")


def words(name):
    return [word.strip() for word in os.environ.get(f"PYRAY_SER_{name}", "").split(",") if word.strip()]


# Do not import the package: the modules that it imports are not built yet.
reason = runpy.run_path(str(Path(__file__).parent / PACKAGE / "_platform.py"))["unsupported"]()
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    reason = "pyray_ser needs Python with the GIL, not a free-threaded build"
if reason:
    sys.exit(reason)

DEBUG = switch("DEBUG")
SANITIZE = words("SANITIZE")
COVERAGE = switch("COVERAGE")
ANNOTATE = switch("ANNOTATE")
JOBS = int(os.environ.get("PYRAY_SER_JOBS") or len(os.sched_getaffinity(0)))

# Bounds before use is the rule of the code; these directives keep Cython from checking a second time.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "linetrace": COVERAGE,
}


def c_sources(extension):
    """The files of csrc that are linked into `extension`; no file is linked into two."""
    folder = FOLDER_OF.get(extension, extension.removeprefix("_"))
    return sorted(glob(f"csrc/{folder}/**/*.c", recursive=True))


def compile_args():
    args = ["-std=gnu11", "-pthread", "-fvisibility=hidden", "-fno-strict-aliasing"]
    if DEBUG or SANITIZE or COVERAGE:
        args += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
    else:
        args += ["-O3", "-g0", "-DNDEBUG"]
    if SANITIZE:
        args += [f"-fsanitize={','.join(SANITIZE)}"]
        if "undefined" in SANITIZE:
            args += ["-fno-sanitize-recover=undefined"]
    if COVERAGE:
        args += ["--coverage"]
    return args


def link_args():
    args = ["-pthread"]
    if SANITIZE:
        args += [f"-fsanitize={','.join(SANITIZE)}"]
    if COVERAGE:
        args += ["--coverage"]
    if not (DEBUG or SANITIZE or COVERAGE):
        args += ["-Wl,-O1", "-Wl,--as-needed"]
    return args


def macros(needs_numpy):
    defined = []
    if DEBUG:
        defined.append(("PRS_DEBUG", "1"))
    if switch("PUBLIC_API"):
        defined.append(("PRP_PUBLIC_API_ONLY", "1"))
    if switch("INTRUDER"):
        defined.append(("PRP_INTRUDER", "1"))
    if COVERAGE:
        defined.append(("CYTHON_TRACE_NOGIL", "1"))
    if needs_numpy:
        defined.append(("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"))
    return defined


# Our own C is compiled with strict warnings; we cannot correct the code that Cython writes.
STRICT = [
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wpointer-arith",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wvla",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    *(["-Werror"] if switch("WERROR") else []),
]
GENERATED = ["-Wno-unused-function", "-Wno-unused-parameter", "-Wno-cast-function-type", "-Wno-sign-compare"]


def extensions():
    wanted = words("EXTENSIONS")
    headers = sorted(glob("csrc/**/*.h", recursive=True))
    # Cython itself follows cimports; an .so is relinked when any declaration file moved.
    declarations = sorted(glob(f"pyx/{PACKAGE}/**/*.px[di]", recursive=True))
    found = []
    for path in sorted(Path("pyx", PACKAGE).glob("*.pyx")):
        name = path.stem
        if wanted and name not in wanted:
            continue
        include_dirs = ["csrc", *sorted(glob("csrc/**/", recursive=True))]
        if name in NEEDS_NUMPY:
            import numpy

            include_dirs.append(numpy.get_include())
        found.append(
            Extension(
                f"{PACKAGE}.{name}",
                sources=[str(path), *c_sources(name)],
                include_dirs=include_dirs,
                define_macros=macros(name in NEEDS_NUMPY),
                extra_compile_args=compile_args(),
                extra_link_args=link_args(),
                depends=headers + declarations + ["setup.py"],
                language="c",
            )
        )
    missing = set(wanted) - {extension.name.rpartition(".")[2] for extension in found}
    if missing:
        sys.exit(f"PYRAY_SER_EXTENSIONS: no such source in pyx/{PACKAGE}: {', '.join(sorted(missing))}")
    return found


class BuildExtensions(build_ext):
    """Cython output goes next to the objects, never into the tree; compilers run in parallel."""

    def build_extensions(self):
        from Cython.Build import cythonize

        if self.extensions:
            translated = cythonize(
                self.extensions,
                include_path=["pyx"],
                build_dir=os.path.join(self.build_temp, "cython"),
                compiler_directives=DIRECTIVES,
                annotate=ANNOTATE,
                force=self.force,
                emit_linenums=COVERAGE,
                nthreads=0,
            )
            sources = {extension.name: extension.sources for extension in translated}
            for extension in self.extensions:
                extension.sources = sources[extension.name]
        self._compile_in_parallel()
        self.parallel = None  # builds one extension after the other, the files of each in parallel
        super().build_extensions()

    def _compile_in_parallel(self):
        """Make the compiler object work on several files at once, with the warnings that apply to each file."""
        compiler = self.compiler
        compile_one = compiler._compile

        def compile_all(
            sources,
            output_dir=None,
            macros=None,
            include_dirs=None,
            debug=False,
            extra_preargs=None,
            extra_postargs=None,
            depends=None,
        ):
            macros, objects, extra_postargs, pp_opts, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)

            def work(item):
                obj, (src, ext) = item
                if not self.force and os.path.exists(obj) and not newer_group([src, *depends], obj):
                    return
                warnings = STRICT if Path(src).parts[0] == "csrc" else GENERATED
                compile_one(obj, src, ext, cc_args, [*extra_postargs, *warnings], pp_opts)

            with ThreadPoolExecutor(max_workers=JOBS) as pool:
                list(pool.map(work, build.items()))
            return objects

        compiler.compile = compile_all


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
