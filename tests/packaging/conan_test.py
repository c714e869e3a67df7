"""conan_test.py CONANFILE WORK CMAKE [CMake options…]: runs a recipe's methods with stand-ins for Conan's modules, and looks
at what it exports and installs. The package goes to WORK/package."""

import fnmatch
import os
import shutil
import subprocess
import sys
import types

conanfile, work, cmake, *cmake_options = sys.argv[1:]
shutil.rmtree(work, ignore_errors=True)


def copy(recipe, pattern, source, destination):
    source = os.path.realpath(source)
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), source)
            if fnmatch.fnmatch(path, pattern):
                target = os.path.join(destination, path)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy(os.path.join(source, path), target)


def load(recipe, path):
    with open(path, encoding="utf-8") as file:
        return file.read()


class CMakeToolchain:
    def __init__(self, recipe):
        self.recipe, self.cache_variables = recipe, {}

    def generate(self):
        self.recipe.variables = self.cache_variables


class CMakeDeps:
    def __init__(self, recipe):
        self.recipe = recipe

    def generate(self):
        self.recipe.has_deps = True


class CMake:
    def __init__(self, recipe):
        self.recipe = recipe

    def configure(self):
        subprocess.run([cmake, "-S", self.recipe.export_sources_folder, "-B", os.path.join(work, "build"),
                        f"-DCMAKE_INSTALL_PREFIX={self.recipe.package_folder}", *cmake_options,
                        *[f"-D{name}={value}" for name, value in self.recipe.variables.items()]], check=True)

    def install(self):
        subprocess.run([cmake, "--install", os.path.join(work, "build")], check=True)


class ConanFile:
    def __init__(self):
        self.recipe_folder = os.path.dirname(os.path.abspath(conanfile))
        self.export_sources_folder = os.path.join(work, "sources")
        self.package_folder = os.path.join(work, "package")
        self.options = types.SimpleNamespace(**self.default_options)
        self.required, self.properties = [], {}
        self.cpp_info = types.SimpleNamespace(set_property=self.properties.__setitem__)

    def requires(self, reference, **_):
        self.required.append(reference)


for name, contents in {"conan": {"ConanFile": ConanFile}, "conan.tools": {},
                       "conan.tools.build": {"check_min_cppstd": lambda recipe, standard: None},
                       "conan.tools.cmake": {"CMake": CMake, "CMakeDeps": CMakeDeps, "CMakeToolchain": CMakeToolchain},
                       "conan.tools.files": {"copy": copy, "load": load}}.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)

scope = {}
exec(compile(load(None, conanfile), conanfile, "exec"), scope)
recipe = scope["MeoConan"]()
recipe.set_version()
recipe.export_sources()
recipe.requirements()
recipe.validate()
recipe.generate()
recipe.package()
recipe.package_info()

package = os.path.join(work, "package")
assert recipe.has_deps
assert [reference.split("/")[0] for reference in recipe.required] == ["eigen", "nlohmann_json"], recipe.required
assert recipe.properties == {"cmake_find_mode": "none"}, recipe.properties
for folder in recipe.cpp_info.builddirs:
    assert os.path.isfile(os.path.join(package, folder, "meoConfig.cmake")), folder
with open(os.path.join(package, "share", "pkgconfig", "meo.pc"), encoding="utf-8") as file:
    assert f"Version: {recipe.version}\n" in file.read(), recipe.version
