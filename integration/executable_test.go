package integration

import (
	"bytes"
	"debug/elf"
	"debug/pe"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Processes that run a file of the mount.

const smallProgram = "int main(void) { return 0; }\n"

// compiled is what a compiler makes of a small program.
func compiled(t *testing.T, compiler string, args ...string) []byte {
	t.Helper()
	dir := scratch(t)
	source, out := filepath.Join(dir, "app.c"), filepath.Join(dir, "app.exe") // a name that mingw-w64 leaves as it is
	must(t, os.WriteFile(source, []byte(smallProgram), 0o644))
	run(t, "", compiler, append([]string{"-o", out, source}, args...)...)
	return mustRead(t, out)
}

// statusOf is a line of a process's status.
func (m *mount) statusOf(t *testing.T, name, field string) string {
	t.Helper()
	for line := range strings.Lines(string(mustRead(t, m.path(".proc", name, "status")))) {
		if label, value, ok := strings.Cut(line, ":"); ok && label == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestProgramELF: a process runs what gcc has made, at one base for all, and shares its code.
func TestProgramELF(t *testing.T) {
	m := mountMemfs(t, options{})
	file := compiled(t, "gcc")
	must(t, os.Mkdir(m.path("bin"), 0o755))
	must(t, os.WriteFile(m.path("bin/app"), file, 0o755))
	f, err := elf.NewFile(bytes.NewReader(file))
	must(t, err)
	c := m.process(t, "demo")
	c.wantReply("exec /bin/none", "ERR 2 ERROR_FILE_NOT_FOUND")
	c.wantReply("exec /bin", "ERR 5 ERROR_ACCESS_DENIED")
	c.say("exec /bin/app")
	c.wantReply("arch x86", "ERR 87 ERROR_INVALID_PARAMETER (the header of /bin/app says that)")
	if maps := string(mustRead(t, m.path(".proc/demo/maps"))); !strings.Contains(maps, "/bin/app") || !strings.Contains(maps, "stack") {
		t.Errorf("maps:\n%s", maps)
	}
	if got := m.statusOf(t, "demo", "Image") + " " + m.statusOf(t, "demo", "Name"); got != "/bin/app app" {
		t.Errorf("status says %q", got)
	}
	var base, entry uint64
	must2(t)(fmt.Sscanf(m.statusOf(t, "demo", "ImageBase"), "%x", &base))
	must2(t)(fmt.Sscanf(m.statusOf(t, "demo", "EntryPoint"), "%x", &entry))
	if base == 0 || entry != base+f.Entry {
		t.Errorf("it begins at 0x%x of an image at 0x%x, want 0x%x", entry, base, f.Entry)
	}
	c.say(fmt.Sprintf("Execute 0x%x", entry))
	for _, s := range f.Sections {
		if s.Name == ".text" {
			if want := file[s.Offset : s.Offset+s.Size]; !bytes.Equal(c.readAll(base+s.Addr, len(want)), want) {
				t.Error("its code is not the file's")
			}
		}
	}
	if got, want := c.say(`CreateProcess "\bin\app" 0`)[0], fmt.Sprintf(" Name=app ImageBaseAddress=0x%x TransferAddress=0x%x", base, entry); !strings.HasSuffix(got, want) {
		t.Errorf("a second process: %s, want%s", got, want)
	}
	c.say(fmt.Sprintf("app: Execute 0x%x", entry))
	c.wantReply("exec /bin/app", "ERR 5 ERROR_ACCESS_DENIED") // it has been used
	c.wantReply(`CreateFile "/bin/app" GENERIC_WRITE`, "ERR 32 ERROR_SHARING_VIOLATION")
	must(t, os.WriteFile(m.path("bin/text"), []byte("#!/bin/sh\n"), 0o755))
	c.wantReply(`CreateProcess "/bin/text"`, "ERR 193 ERROR_BAD_EXE_FORMAT")
	if err := os.WriteFile(m.path(".proc/demo/ctl"), []byte(`CreateProcess "/bin/text"`), 0); err == nil || !strings.Contains(err.Error(), unix.ENOEXEC.Error()) {
		t.Errorf("a write of a line that starts no program: %v", err)
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// TestProgramPE: a process runs what mingw-w64 has made, with the sizes of its header.
func TestProgramPE(t *testing.T) {
	const compiler = "i686-w64-mingw32-gcc"
	if _, err := os.Stat("/usr/bin/" + compiler); err != nil {
		cannot(t, "gcc-mingw-w64-i686-win32 is not installed")
	}
	m := mountMemfs(t, options{})
	file := compiled(t, compiler, "-Wl,--stack,0x300000,--heap,0x280000,--nxcompat,--dynamicbase,--large-address-aware")
	must(t, os.WriteFile(m.path("App.EXE"), file, 0o644))
	f, err := pe.NewFile(bytes.NewReader(file))
	must(t, err)
	h := f.OptionalHeader.(*pe.OptionalHeader32)
	c := m.process(t, "demo")
	c.say("exec /App.EXE")
	var base uint64
	must2(t)(fmt.Sscanf(m.statusOf(t, "demo", "ImageBase"), "%x", &base))
	if got := m.statusOf(t, "demo", "EntryPoint"); got != fmt.Sprintf("%08x", base+uint64(h.AddressOfEntryPoint)) {
		t.Errorf("it begins at %s of an image at 0x%x", got, base)
	}
	for field, want := range map[string]string{
		"Name": "App.EXE", "Arch": "x86", "DEP": "DEP (permanent)", "HighestAddress": "fffeffff", "Threads": "1",
	} {
		if got := m.statusOf(t, "demo", field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	stack := c.say("CreateThread")[0]
	var id, top, bottom uint64
	must2(t)(fmt.Sscanf(stack, "OK 0x%x StackBase=0x%x DeallocationStack=0x%x", &id, &top, &bottom))
	if top-bottom != 0x300000 {
		t.Errorf("a stack has 0x%x bytes", top-bottom)
	}
	c.say("h = GetProcessHeap")
	if got := c.say("QueryVirtualMemoryInformation $h")[0]; !strings.Contains(got, "RegionSize=0x280000 ") {
		t.Errorf("the default heap is %s", got)
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// TestProgramAlwaysOn: where no program can be executed because of the policy, processes run files none the less, with DEP.
func TestProgramAlwaysOn(t *testing.T) {
	m := mountMemfs(t, options{flags: []string{"--nx", "AlwaysOn"}})
	must(t, os.WriteFile(m.path("app"), compiled(t, "gcc"), 0o755))
	if err := exec.Command(m.path("app")).Run(); err == nil {
		t.Error("the host executes it")
	}
	c := m.process(t, "demo")
	c.say("exec /app")
	if got := m.statusOf(t, "demo", "DEP"); got != "DEP (permanent)" {
		t.Errorf("DEP is %q", got)
	}
}
