// A mock of NVRTC: "compiles" to the name of the library of kernels that the test built for the host.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#define API extern "C" __attribute__((visibility("default"))) int
struct Program { std::string image; };

API nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 99; return 0; }  // no real version, so that its cache entries are its own
API nvrtcCreateProgram(void** p, const char* source, const char*, int, const char* const*, const char* const*) {
    if (!strstr(source, "__global__")) return 3;
    *p = new Program;
    return 0;
}
API nvrtcCompileProgram(void* p, int n, const char* const* options) {
    std::string mode = "f32", arch;
    for (int i = 0; i < n; i++) {
        std::string option = options[i];
        if (option == "--define-macro=COMPUTE_BF16") mode = "bf16";
        if (option.rfind("--gpu-architecture=", 0) == 0) arch = option.substr(19);
    }
    if (arch.rfind("sm_", 0) != 0) return 5;  // never PTX
    ((Program*)p)->image = "libkernels_" + mode + ".so";
    // What was compiled, and for what, for the tests of the cache.
    if (const char* log = getenv("MOCK_NVRTC_LOG")) {
        FILE* file = fopen(log, "a");
        fprintf(file, "%s %s\n", arch.c_str(), mode.c_str());
        fclose(file);
    }
    return 0;
}
API nvrtcGetProgramLogSize(void*, size_t* n) { *n = 1; return 0; }
API nvrtcGetProgramLog(void*, char* log) { *log = 0; return 0; }
API nvrtcGetCUBINSize(void* p, size_t* n) { *n = ((Program*)p)->image.size() + 1; return 0; }
API nvrtcGetCUBIN(void* p, char* out) { strcpy(out, ((Program*)p)->image.c_str()); return 0; }
API nvrtcDestroyProgram(void** p) { delete (Program*)*p; *p = nullptr; return 0; }
API nvrtcGetErrorString(int) { return 0; }
