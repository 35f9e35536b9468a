/* Proof: whatever the bytes, the directory of a zip is read within the file, and a member that is let
 * through lies in it. */
#include "stubs.h"

#include "../../zip.c"

void directory(void) {
    FileMap map = any_file();
    Directory found = zip_directory(&map, "");
    assert(found.start <= map.size && found.size <= map.size - found.start);
    assert(found.count <= found.size / 46);
}

void member(void) {
    FileMap map = any_file();
    ZipMember member;
    size_t at;
    __CPROVER_assume(at <= map.size);
    size_t size = zip_member(&map, map.data + at, map.size - at, "", NULL, &member);
    assert(size >= 46 && size <= map.size - at);
    assert(member.data >= map.data && member.end <= map.size);
    assert(member.packed <= map.size - (size_t)(member.data - map.data));
    assert(member.begin < member.end || member.packed == 0);
}
