/* Wine before version 9 has no bcryptprimitives.dll, which the Rust standard library takes its random numbers from
   (ProcessPrng). This one asks advapi32's RtlGenRandom instead, whose exported name is SystemFunction036. It is
   compiled into wine's own folder for the tests and belongs to nothing that is shipped. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);

static const SIZE_T LONGEST_REQUEST = 0x10000000;

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T length)
{
    while (length > 0) {
        ULONG part = (ULONG)(length < LONGEST_REQUEST ? length : LONGEST_REQUEST);
        if (!SystemFunction036(bytes, part))
            return FALSE;
        bytes += part;
        length -= part;
    }
    return TRUE;
}

BOOL WINAPI DllMain(HINSTANCE instance, DWORD reason, LPVOID reserved)
{
    return TRUE;
}
