package integration

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// verb runs the command in a directory and returns what it prints and its exit status.
func verb(t *testing.T, dir string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(memfsBinary, args...)
	cmd.Dir = dir
	var out, diagnostics strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("memfs %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), diagnostics.String(), status
}

// wantVerb runs a verb that must succeed, and print what the pattern says.
func wantVerb(t *testing.T, dir, pattern string, args ...string) string {
	t.Helper()
	out, diagnostics, status := verb(t, dir, args...)
	if status != 0 || !regexp.MustCompile(pattern).MatchString(out) {
		t.Errorf("memfs %s: exit status %d, want 0 and %s\n%s%s", strings.Join(args, " "), status, pattern, out, diagnostics)
	}
	return out
}

// TestVerbsProcesses drives a process by the command alone, from inside the mount and by path.
func TestVerbsProcesses(t *testing.T) {
	m := mountMemfs(t, options{})
	for _, name := range []string{"demo", "old@x86"} {
		must(t, os.Mkdir(m.path(".proc", name), 0o755))
	}
	must(t, os.MkdirAll(m.path("deep/er"), 0o755))
	in := m.path("deep/er")

	wantVerb(t, in, `(?m)x64   DEP \(permanent\) .* demo$`, "ps")
	wantVerb(t, "/", `(?m)x86                   .* old@x86$`, "ps", in)
	var list struct {
		Processes []struct{ Folder, DEP string }
	}
	must(t, json.Unmarshal([]byte(wantVerb(t, in, "^{", "ps", "-o", "json")), &list))
	if len(list.Processes) != 3 || list.Processes[0].Folder != "System" || list.Processes[1].DEP != "DEP (permanent)" || list.Processes[2].DEP != "" {
		t.Errorf("ps as JSON is %+v", list)
	}

	wantVerb(t, in, "^OK 0x30000000\n$", "call", "demo", "r = VirtualAlloc 0x30000000 0x2000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE")
	wantVerb(t, in, "^OK ", "call", "demo", "Write", "$r+0x10", "c3")
	wantVerb(t, "/", "data=c3\n$", "call", "-m", m.dir, "demo", "Read", "$r+0x10", "1")
	wantVerb(t, "/", "Protect=PAGE_READWRITE", "call", m.path(".proc/demo"), "VirtualQuery", "0x30000000")
	for line, want := range map[string]string{
		"Execute $r+0x10":              "memfs: EXC 0xC0000005 execute 0x30000010\n",
		"VirtualFree $r 1 MEM_RELEASE": "memfs: ERR 87 ERROR_INVALID_PARAMETER\n",
	} {
		out, diagnostics, status := verb(t, in, "call", "demo", line)
		if out != "" || diagnostics != want || status != 1 {
			t.Errorf("call %s: exit status %d, %q, %q, want 1 and %q", line, status, out, diagnostics, want)
		}
	}
	wantVerb(t, in, `000030000000 +8192 MEM_COMMIT .* PAGE_READWRITE`, "maps", "demo")
	wantVerb(t, in, `000030000000 Active`, "pages", m.path(".proc/demo"))

	wantVerb(t, in, "^DEP .permanent.\n$", "dep", "demo")
	wantVerb(t, in, "^\n$", "dep", "old")
	wantVerb(t, in, "^$", "dep", "old", "PROCESS_DEP_ENABLE|PROCESS_DEP_DISABLE_ATL_THUNK_EMULATION")
	wantVerb(t, in, "^DEP .permanent.\n$", "dep", "old@x86")
	if _, diagnostics, status := verb(t, in, "dep", "old", "off"); status != 1 || !strings.Contains(diagnostics, "ERR 5 ") {
		t.Errorf("turning permanent DEP off: exit status %d, %q", status, diagnostics)
	}
	wantVerb(t, in, "^OptIn\n$", "nx")
	wantVerb(t, in, "^$", "nx", "AlwaysOff")
	wantVerb(t, "/", "^AlwaysOff\n$", "nx", in)

	wantVerb(t, "/", "^$", "nx", "--optin", "Listed", "--optout", "legacy", "--optout", "gone", in, "OptIn")
	wantVerb(t, "/", "^$", "nx", "--optout=-GONE", in)
	if got := string(mustRead(t, m.path(".proc/policy/optout"))); got != "legacy\n" {
		t.Errorf("the list of OptOut is %q", got)
	}
	for twin, want := range map[string]string{"optout": `"optout":["legacy"]`, "optin": `"optin":["listed"]`, "nx": `"nx":"OptIn"`,
		"arch": `"arch":"x64"`} {
		if got := string(mustRead(t, m.path(".proc/policy/"+twin+".json"))); !strings.Contains(got, want) {
			t.Errorf("policy/%s.json is %q, want %s in it", twin, got, want)
		}
	}
	wantErrno(t, "a program of no name", os.WriteFile(m.path(".proc/policy/optin"), []byte("a\n-\n"), 0), unix.EINVAL)
	for name, want := range map[string]string{"listed@x86": "DEP\n", "legacy@x86": "\n", "svc@x86,system": "DEP\n",
		"new@x86,nxcompat": "DEP (permanent)\n", "asked@x86,dep=on": "DEP\n", "phone@arm64": "DEP (permanent)\n"} {
		must(t, os.Mkdir(m.path(".proc", name), 0o755))
		if got := string(mustRead(t, m.path(".proc", name, "dep"))); got != want {
			t.Errorf("%s: dep is %q, want %q", name, got, want)
		}
	}
	dep := func(name, flags string) error {
		return os.WriteFile(m.path(".proc", name, "dep"), []byte(flags+"\n"), 0)
	}
	must(t, dep("asked@x86,dep=on", "0"))
	if got := string(mustRead(t, m.path(".proc/asked@x86,dep=on/dep"))); got != "\n" {
		t.Errorf("after 0 was written, dep is %q", got)
	}
	must(t, dep("asked@x86,dep=on", "PROCESS_DEP_ENABLE"))
	wantErrno(t, "flags for good", dep("asked@x86,dep=on", "0"), unix.EACCES)
	wantErrno(t, "flags of a 64-bit process", dep("demo", "1"), unix.EOPNOTSUPP)
	wantErrno(t, "no flags", dep("listed@x86", "DEP"), unix.EINVAL)
	wantErrno(t, "bad flags", dep("listed@x86", "2"), unix.EINVAL)
	wantErrno(t, "a process that cannot be", os.Mkdir(m.path(".proc/x@x64,dep=off"), 0o755), unix.EINVAL)
	for _, name := range []string{"listed@x86", "legacy@x86", "svc@x86,system", "new@x86,nxcompat", "asked@x86,dep=on", "phone@arm64"} {
		must(t, os.Remove(m.path(".proc", name)))
	}
	if m.vmstat().get(t, "dep_violations") != 1 {
		t.Error("the violation was not counted")
	}
	if log := m.log(); !strings.Contains(log, "(demo): DEP violation: 0x30000010") {
		t.Errorf("the violation was not logged:\n%s", log)
	}

	script := filepath.Join(t.TempDir(), "script")
	must(t, os.WriteFile(script, []byte(`# scenario: one [arch=x64]
r = VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READONLY -> OK Align=0x10000
Write $r 00 -> EXC 0xC0000005 write $r
P2: r = VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE -> OK
`), 0o644))
	wantVerb(t, in, "(?m)^Write .r 00 -> EXC 0xC0000005 write 0x", "run", script)
	must(t, os.WriteFile(script, []byte("VirtualQuery 0 -> OK State=MEM_COMMIT\n"), 0o644))
	if _, diagnostics, status := verb(t, in, "run", script); status != 1 || !strings.Contains(diagnostics, "script:1: VirtualQuery 0\n") {
		t.Errorf("a script that does not hold: exit status %d, %q", status, diagnostics)
	}
	if ps := wantVerb(t, in, "demo", "ps"); strings.Count(ps, "\n") != 4 {
		t.Errorf("scripts left processes behind:\n%s", ps)
	}
	wantVerb(t, in, "(?s)frames .*demo.*/s.*demo", "top", "-n", "2", "-d", "100ms")
	wantVerb(t, in, "^ok\n$", "check")
}

// TestVerbsFiles steers files by the command alone, through links and odd names too.
func TestVerbsFiles(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.MkdirAll(m.path("dir/sub"), 0o755))
	must(t, writeContent(m.path("dir/a"), 1, 1<<20))
	must(t, writeContent(m.path("dir/sub/:info"), 2, 8<<10))
	must(t, os.Symlink("dir/a", m.path("link")))
	wantVerb(t, m.dir, "(?m)^ +1M +256 +256 +.* dir/a$", "files")
	wantVerb(t, m.path("dir"), `(?m)^ +8K +2 +2 +.* dir/sub/:info$`, "files", "sub")
	wantVerb(t, m.dir, `(?m)^A{64}$|^00000000 A{64}`, "pages", "--map", "link")
	wantVerb(t, m.dir, "^OK trimmed=2 written=2\n$", "trim", "dir/sub/:info")
	wantVerb(t, m.dir, "S{2}\n$", "pages", "--map", "dir/sub/:info")
	wantVerb(t, m.dir, "^dir/a: OK read=0\ndir/sub: OK read=0 files=1 skipped=0\n$", "pin", "dir/a", "dir/sub")
	wantVerb(t, m.dir, `"pinned":true`, "files", "--json", "--sort", "size", "-n", "1")
	wantVerb(t, m.dir, "^OK trimmed=", "trim")
	wantVerb(t, m.dir, `(?m)^ +1M +256 +256 .* pin +RWX  dir/a$`, "files")
	wantVerb(t, m.dir, "^OK", "pin", "--off", "dir")
	wantVerb(t, m.dir, "^OK trimmed=[0-9]+ written=256\n$", "trim", "link")
	wantVerb(t, m.dir, "^OK written=", "flush", "dir", "--timeout", "1m")
}

// TestVerbPrefetch brings pages back by the command: of a file, of a range, of a directory, and those of a list of faults from a
// file, from standard input and from a pipe.
func TestVerbPrefetch(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.Mkdir(m.path("dir"), 0o755))
	must(t, writeContent(m.path("dir/a"), 1, 1<<20))
	must(t, writeContent(m.path("dir/b"), 2, 1<<20))
	list := filepath.Join(t.TempDir(), "list")
	must(t, os.WriteFile(list, []byte("Offset Length Kind\n    524288   8192 hard\n0 4096\n# the end\n"), 0o644))
	sh := func(want, script string) {
		t.Helper()
		if m.ctl("empty all"); m.info(t, "dir/a", "Paged") != "256" {
			t.Fatal("the file is still in memory")
		}
		out, err := exec.Command("sh", "-c", "cd "+m.dir+"; memfs=$1 list=$2; "+script, "sh", memfsBinary, list).CombinedOutput()
		if !strings.Contains(string(out), want) || strings.Contains(want, "OK") != (err == nil) {
			t.Errorf("%s: %q, %v; want %q", script, out, err, want)
		}
	}
	sh("OK prefetched=256\n", "$memfs prefetch dir/a < /dev/null")
	sh("OK prefetched=256\n", ": | $memfs prefetch dir/a")
	sh("OK prefetched=64\n", "$memfs prefetch dir/a 256K 256K < $list") // a view: no more is read ahead
	sh("OK prefetched=512 files=2 skipped=0\n", "$memfs prefetch dir < /dev/null")
	for _, replay := range []string{
		"$memfs prefetch dir/a < $list", "$memfs prefetch dir/a --list $list", "cat $list | $memfs prefetch --list - dir/a",
	} {
		sh("OK prefetched=", replay)
		if got := m.pageMap("dir/a"); got[0] != 'S' || got[64] != 'P' || got[128:130] != "SS" || got[192] != 'P' { // and a little ahead
			t.Errorf("%s: the map is %s", replay, got)
		}
	}
	// What was recorded, from the file that shows it.
	must(t, echo(m.path(".proc/files/dir/a/ctl"), "faults start"))
	wantContent(t, m.path("dir/a"), 1, 1<<20)
	must(t, echo(m.path(".proc/files/dir/a/ctl"), "faults stop"))
	sh("OK prefetched=256\n", "$memfs prefetch dir/a < .proc/files/dir/a/faults")
	sh("a list of faults is of one file", "$memfs prefetch --list $list dir")
	// A file that is no list is the caller's, as the script that it runs in or the names that it goes through.
	sh("OK prefetched=", "(echo dir/a; echo dir/b) > $list.names; while read name; do $memfs prefetch $name; done < $list.names")
	if m.info(t, "dir/a", "Paged")+m.info(t, "dir/b", "Paged") != "00" {
		t.Error("not all files of a list of names were prefetched")
	}
	sh("standard input is no list of faults: prefetching the whole\nOK prefetched=256\n", "$memfs prefetch dir/a < $list.names")
	sh("is no fault", "echo '0 4096' > $list.bad; echo dir/b >> $list.bad; $memfs prefetch dir/a < $list.bad")
	sh("is no fault", "$memfs prefetch dir/a --list $list.names")
	sh("no fault in it", "$memfs prefetch dir/a --list /dev/null")
	sh("give one of them", "$memfs prefetch --list $list dir/a 4K")
	sh("not a number of bytes", "$memfs prefetch dir/a four")
}

// filesOfDialogue is a line of a dialogue that makes a file.
var filesOfDialogue = regexp.MustCompile(`(?m)^(pe)?file `)

// TestDialoguesOverMount plays the dialogues of the Virtual API and of heaps through a live mount.
func TestDialoguesOverMount(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "64M"})
	scripts, err := filepath.Glob("../mm/win32/testdata/*.txt")
	must(t, err)
	scripts = append(scripts, "../mm/heap/testdata/heap.txt", "../mm/heap/testdata/global-local.txt")
	if len(scripts) < 15 {
		t.Fatalf("only %d scripts", len(scripts))
	}
	scripts = slices.DeleteFunc(scripts, func(s string) bool {
		// rules-global fills a table of 65536 handles, a request each; sections and views of files have a test of their own.
		return filepath.Base(s) == "rules-global.txt" || filesOfDialogue.Match(mustRead(t, s))
	})
	if len(scripts) < 10 {
		t.Fatalf("only %d scripts", len(scripts))
	}
	out, diagnostics, status := verb(t, "", append([]string{"run", "--quiet", "-m", m.dir}, scripts...)...)
	if status != 0 || out != "" {
		t.Errorf("exit status %d\n%s%s", status, out, diagnostics)
	}
	wantVerb(t, m.dir, "^ok\n$", "check")
}
