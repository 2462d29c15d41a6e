"""How pip builds the module: with CMake, in build-pip. The rest is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

root = Path(__file__).resolve().parent
build = root / "build-pip"
build.mkdir(exist_ok=True)


class CMake(build_ext):
    def build_extension(self, extension):
        folder = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        subprocess.check_call([
            "cmake", "-S", root, "-B", build / "cmake", "-G", "Ninja", "-D", "DENSE_PYTHON_ONLY=ON",
            "-D", f"CMAKE_BUILD_TYPE={os.environ.get('CMAKE_BUILD_TYPE', 'Release')}",
            "-D", f"Python_EXECUTABLE={sys.executable}", "-D", f"CMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}"])
        subprocess.check_call(["cmake", "--build", build / "cmake"])


setup(ext_modules=[Extension("dense", [])], cmdclass={"build_ext": CMake},
      options={"build": {"build_base": str(build)}, "egg_info": {"egg_base": str(build)}})
