package integration

import (
	"bytes"
	"debug/elf"
	"debug/pe"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// largeLibrary is a shared object of the system's, of a few MiB.
func largeLibrary(t *testing.T) string {
	t.Helper()
	for _, pattern := range []string{"libcrypto.so.3", "libstdc++.so.6", "libc.so.6"} {
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"} {
			if name := filepath.Join(dir, pattern); fileSize(name) > 1<<20 {
				return name
			}
		}
	}
	cannot(t, "there is no large x86-64 library here")
	return ""
}

func fileSize(name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return info.Size()
}

// mapImage has a process map an image, and returns its base.
func (c *console) mapImage(path string) uint64 {
	c.t.Helper()
	replies := c.say(
		fmt.Sprintf("f = CreateFile %q GENERIC_READ|GENERIC_EXECUTE", path), "h = CreateFileMapping $f PAGE_READONLY|SEC_IMAGE 0 0 0",
		"v = MapViewOfFile $h FILE_MAP_READ 0 0 0", "CloseHandle $f", "CloseHandle $h",
	)
	base, err := strconv.ParseUint(strings.TrimPrefix(strings.Fields(replies[2])[1], "0x"), 16, 64)
	must(c.t, err)
	return base
}

// readAll reads much memory.
func (c *console) readAll(at uint64, n int) []byte {
	c.t.Helper()
	var all bytes.Buffer
	for n > 0 {
		part := min(n, 16<<10)
		all.Write(c.read(fmt.Sprintf("0x%x", at+uint64(all.Len())), part))
		n -= part
	}
	return all.Bytes()
}

// TestImageELF loads a real shared object in two processes: its code is the file's bytes, and in memory once.
func TestImageELF(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "256M"})
	library := largeLibrary(t)
	file := mustRead(t, library)
	must(t, os.WriteFile(m.path("lib.so"), file, 0o755)) // still in the kernel's cache
	f, err := elf.NewFile(bytes.NewReader(file))
	must(t, err)
	a, b := m.process(t, "a"), m.process(t, "b")
	base := a.mapImage("/lib.so")
	if other := b.mapImage("/lib.so"); other != base {
		t.Errorf("the system chose 0x%x for one process and 0x%x for the other", base, other)
	}
	for _, c := range []*console{a, b} {
		c.say(fmt.Sprintf("SetProcessWorkingSetSize 0x100000 %d", 2*len(file)))
	}
	m.ctl("trim") // what was written is not in a working set any more
	active := func() int64 { return int64(m.counters("meminfo").get(t, "Active")) }
	code := int64(0)
	var grew [2]int64
	for i, c := range []*console{a, b} {
		before := active()
		for _, p := range f.Progs {
			if p.Type != elf.PT_LOAD || p.Flags&elf.PF_W != 0 {
				continue
			}
			if want := file[p.Off : p.Off+p.Filesz]; !bytes.Equal(c.readAll(base+p.Vaddr, len(want)), want) {
				t.Errorf("%s: segment 0x%x is not the file's bytes", c.name, p.Vaddr)
			}
			if i == 0 {
				code += int64(p.Filesz) >> 10
			}
			reply := c.say(fmt.Sprintf("VirtualQuery 0x%x", base+p.Vaddr))[0]
			want := "Protect=PAGE_READONLY "
			if p.Flags&elf.PF_X != 0 {
				want = "Protect=PAGE_EXECUTE_READ "
				c.say(fmt.Sprintf("Execute 0x%x", base+p.Vaddr))
			}
			if !strings.Contains(reply, want) || !strings.Contains(reply, "Type=MEM_IMAGE") {
				t.Errorf("segment 0x%x: %s, want %s", p.Vaddr, reply, want)
			}
		}
		grew[i] = active() - before
	}
	t.Logf("%s: %d kB; reading all of it, Active grew by %d kB for the first process and %d for the second", filepath.Base(library), code, grew[0], grew[1])
	if grew[0] < code*3/4 {
		t.Errorf("the first process took %d kB for %d kB of code: the test measures nothing", grew[0], code)
	}
	if grew[1] > code/8 {
		t.Errorf("the second process took %d kB for %d kB that the first one has", grew[1], code)
	}

	// A write is the process's own: neither the other nor the file sees it.
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Flags&elf.PF_W == 0 {
			continue
		}
		at := fmt.Sprintf("0x%x", base+p.Vaddr)
		was := b.read(at, 16)
		a.say("Write " + at + " 00112233445566778899aabbccddeeff")
		if got := b.read(at, 16); !bytes.Equal(got, was) {
			t.Errorf("the other process reads %x, was %x", got, was)
		}
		if reply := a.say("VirtualQuery " + at)[0]; !strings.Contains(reply, "Protect=PAGE_READWRITE ") {
			t.Errorf("what was written is %s", reply)
		}
		a.wantReply("Execute "+at, "EXC 0xC0000005 execute "+at)
		break
	}
	if !bytes.Equal(mustRead(t, m.path("lib.so")), file) {
		t.Error("the file has changed")
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
	for _, c := range []*console{a, b} {
		c.say("UnmapViewOfFile $v+0x1234")
	}
	// Nobody minds removing it now, and nothing is left.
	must(t, os.Remove(m.path("lib.so")))
}

// TestImagePE loads a DLL that mingw-w64 made, and what is none.
func TestImagePE(t *testing.T) {
	files, _ := filepath.Glob("/usr/lib/gcc/x86_64-w64-mingw32/*/libstdc++-6.dll")
	if len(files) == 0 {
		cannot(t, "gcc-mingw-w64-x86-64-win32 is not installed")
	}
	m := mountMemfs(t, options{memory: "64M", pageFile: "256M"})
	file := mustRead(t, files[0])
	must(t, exec.Command("cp", files[0], m.path("lib.dll")).Run())
	f, err := pe.NewFile(bytes.NewReader(file))
	must(t, err)
	a, b := m.process(t, "a"), m.process(t, "b")
	base := a.mapImage("/lib.dll")
	if other := b.mapImage("/lib.dll"); other != base {
		t.Errorf("the system chose 0x%x for one process and 0x%x for the other", base, other)
	}
	wantFault := "EXC 0xC0000005 write "
	for _, s := range f.Sections {
		if s.Name != ".text" {
			continue
		}
		// Code of x86-64 has few addresses in it; here none, or the linker would say so in .reloc.
		n := min(int(s.Size), 256<<10)
		want := file[s.Offset : int(s.Offset)+n]
		for _, c := range []*console{a, b} {
			if !bytes.Equal(c.readAll(base+uint64(s.VirtualAddress), n), want) {
				t.Errorf("%s: the code is not the file's", c.name)
			}
		}
		a.wantReply(fmt.Sprintf("Write 0x%x 90", base+uint64(s.VirtualAddress)), wantFault)
	}
	must(t, os.WriteFile(m.path("cut.dll"), file[:len(file)/2], 0o644))
	must(t, os.WriteFile(m.path("text"), []byte("#!/bin/sh\necho no image\n"), 0o755))
	for _, name := range []string{"cut.dll", "text"} {
		a.say(fmt.Sprintf("f = CreateFile \"/%s\" GENERIC_READ", name))
		a.wantReply("CreateFileMapping $f PAGE_READONLY|SEC_IMAGE 0 0 0", "ERR 193 ERROR_BAD_EXE_FORMAT")
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}
