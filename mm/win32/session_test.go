package win32

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"memfs/mm/process"
)

func newSession(t testing.TB, i process.Image) *Session {
	t.Helper()
	sys := newSystem(t, 64, 512)
	m := process.NewMachine(sys, process.OptIn, process.Listener{})
	p, err := m.Start(i)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range append(sys.Check(), m.Check()...) {
			t.Error(err)
		}
		for _, p := range m.Processes() {
			m.End(p)
		}
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	})
	return NewSession(m, p, func(string, string) (*process.Process, error) { return m.Start(i) })
}

// TestReplies holds the exact text of replies, which programs read.
func TestReplies(t *testing.T) {
	s := newSession(t, process.Image{Arch: process.X64})
	for _, c := range []struct {
		line, reply string
		errno       syscall.Errno
	}{
		{"", "", 0},
		{"   # a comment", "", 0},
		{"r = VirtualAlloc 0x40000000 0x10000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", "OK 0x40000000", 0},
		{"Write $r+0x1000 c3", "OK 0x0", 0},
		{"Read $r+0xfff 3 # around it", "OK 0x0 data=00c300", 0},
		{"VirtualProtect $r 0x1000 PAGE_READONLY", "OK 0x1 OldProtect=PAGE_READWRITE", 0},
		{"Write $r 41", "EXC 0xC0000005 write 0x40000000", syscall.EFAULT},
		{"VirtualProtect $r 0x1000 PAGE_READWRITE|PAGE_GUARD", "OK 0x1 OldProtect=PAGE_READONLY", 0},
		{"Read $r+16 1", "EXC 0x80000001 read 0x40000010", syscall.EFAULT},
		{"Execute $r", "EXC 0xC0000005 execute 0x40000000", syscall.EFAULT},
		{"VirtualFree $r 0x10000 MEM_RELEASE", "ERR 87 ERROR_INVALID_PARAMETER", syscall.EINVAL},
		{"GetLastError", "OK 0x57", 0},
		{"SetLastError 0", "OK 0x0 LastError=0", 0},
		{"VirtualAlloc 0 0 MEM_COMMIT PAGE_READWRITE", "ERR 87 ERROR_INVALID_PARAMETER", syscall.EINVAL},
		{"VirtualQuery $r+0x1000 47", "ERR 24 ERROR_BAD_LENGTH", syscall.EINVAL},
		{"VirtualQuery 0x40010000", "OK 0x30 BaseAddress=0x40010000 AllocationBase=0 AllocationProtect=0 " +
			"RegionSize=0x3ffd0000 State=MEM_FREE Protect=PAGE_NOACCESS Type=0", 0},
		{"OfferVirtualMemory $r 1 1", "ERR 87 ERROR_INVALID_PARAMETER", syscall.EINVAL},
		{"SetLastError 5", "OK 0x0 LastError=5", 0},
		{"OfferVirtualMemory $r 1 1", "ERR 87 ERROR_INVALID_PARAMETER", syscall.EINVAL},
		{"GetLastError", "OK 0x5", 0},
		{"EmptyWorkingSet NULL", "ERR 6 ERROR_INVALID_HANDLE", syscall.EBADF},
		{"EmptyWorkingSet SELF", "OK 0x1", 0},
		{"VirtualAllocEx NULL 0 0x1000 MEM_COMMIT PAGE_READWRITE", "ERR 6 ERROR_INVALID_HANDLE", syscall.EBADF},
		{"P2: q = VirtualAlloc 0x40000000 0x1000 MEM_COMMIT|MEM_RESERVE PAGE_READWRITE", "OK 0x40000000", 0},
		{"WriteProcessMemory P2 0x40000000 abcd", "OK 0x1 BytesWritten=2", 0},
		{"P2: Read $q 2", "OK 0x0 data=abcd", 0},
		{"Read $q 2", "ERR 87 ERROR_INVALID_PARAMETER (there is no variable $q)", syscall.EINVAL},
		{"ReadProcessMemory P2 0x40000fff 2", "ERR 299 ERROR_PARTIAL_COPY BytesRead=0", syscall.EFAULT},
		{"VirtualProtect $r 1 PAGE_READWRITE NULL", "ERR 998 ERROR_NOACCESS", syscall.EFAULT},
		{"GetProcessDEPPolicy", "ERR 50 ERROR_NOT_SUPPORTED", syscall.EOPNOTSUPP},
		{"AllocateUserPhysicalPages 4", "ERR 1314 ERROR_PRIVILEGE_NOT_HELD", syscall.EPERM},
		{"h = CreateMemoryResourceNotification HighMemoryResourceNotification", "OK 0x7ff00004", 0},
		{"QueryMemoryResourceNotification $h", "OK 0x1 ResourceState=1", 0},
		{"QueryMemoryResourceNotification 8", "ERR 6 ERROR_INVALID_HANDLE", syscall.EBADF},
		{"CreateMemoryResourceNotification 2", "ERR 87 ERROR_INVALID_PARAMETER", syscall.EINVAL},
		{"PrefetchVirtualMemory 1 NULL 0", "ERR 998 ERROR_NOACCESS", syscall.EFAULT},
		{"PrefetchVirtualMemory 2 $r 0x1000 $r+0x4000 1 0", "OK 0x1", 0},
		{"VirtualQuery 0x40000000 NULL", "ERR 998 ERROR_NOACCESS", syscall.EFAULT},
	} {
		if reply, errno := s.Execute(c.line); reply != c.reply || errno != c.errno {
			t.Errorf("%s\n  got  %s (%v)\n  want %s (%v)", c.line, reply, errno, c.reply, c.errno)
		}
	}
	if got := fmt.Sprint(s.Peers()); got != "[P2]" {
		t.Errorf("peers %s", got)
	}
}

// TestRefusals: lines that make no sense say why, and do nothing.
func TestRefusals(t *testing.T) {
	s := newSession(t, process.Image{Arch: process.X86})
	for _, c := range []struct{ line, why string }{
		{"Frobnicate 1", "there is no call"}, {"VirtualAlloc 0", "wants Size"}, {"VirtualAlloc 0 1 2 3 4", "takes no"},
		{"VirtualFree 0x 0 0", "is no number"}, {"VirtualFree 12z 0 0", "is no number"},
		{"VirtualFree 0x10000000000000000 0 0", "no number of 64 bits"}, {"VirtualFree PAGE_WRONG 0 0", "there is no constant"},
		{"VirtualFree $x 0 0", "there is no variable"}, {"VirtualFree 1||2 0 0", "is no number"},
		{"VirtualFree 1| 0 0", "missing"}, {`Write 0x10000 "zz"`, "hexadecimal"}, {"Write 0x10000 abc", "hexadecimal"},
		{`VirtualFree "0" 0 0`, "not a string"}, {`Read "`, "not closed"}, {"1 = GetLastError", "no name"},
		{"x =", "a call is wanted"}, {"P2:", "a call is wanted"}, {"\x01", "does not belong"}, {`Read "a"b`, "blank is wanted"},
		{"Read 0x10000 0x7fffffff", "at most"}, {"Read 0x10000 " + strings.Repeat("1", maxLine), "too long"},
		{strings.Repeat("a", 65) + " 1", "a call is wanted"},
	} {
		reply, errno := s.Execute(c.line)
		if !strings.HasPrefix(reply, "ERR 87 ERROR_INVALID_PARAMETER (") || !strings.Contains(reply, c.why) || errno != syscall.EINVAL {
			t.Errorf("%.60s: %q (%v), want %q", c.line, reply, errno, c.why)
		}
		if strings.ContainsAny(reply, "\n\r") {
			t.Errorf("%.60s: the reply has several lines", c.line)
		}
	}
	for i := range maxVariables {
		s.Execute(fmt.Sprintf("v%d = GetLastError", i))
	}
	if reply, errno := s.Execute("w = GetLastError"); errno == 0 {
		t.Errorf("one variable too many: %s", reply)
	}
	if reply, errno := s.Execute("v7 = GetLastError"); errno != 0 {
		t.Errorf("a variable that there is: %s", reply)
	}
	for i := range maxPeers {
		s.Execute(fmt.Sprintf("Q%d: GetLastError", i))
	}
	if n := len(s.Machine.Processes()); n != maxPeers {
		t.Errorf("%d processes, want %d", n, maxPeers)
	}
	if n := len(s.Machine.Processes()[0].Maps()); n != 1 {
		t.Errorf("%d regions after lines that make no sense", n)
	}
}

func TestRegistrationsDoNotCollide(t *testing.T) {
	mustPanic := func(what string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", what)
			}
		}()
		f()
	}
	mustPanic("a call registered twice", func() { Register(Row{Name: "VirtualAlloc"}) })
	mustPanic("a constant with two values", func() { RegisterConstants(map[string]uint64{"PAGE_GUARD": 1}) })
	RegisterConstants(map[string]uint64{"PAGE_GUARD": 0x100})
	for _, line := range strings.Split(strings.TrimSpace(Help()), "\n") {
		if name, help, ok := strings.Cut(line, "    "); !ok || name == "" || help == "" {
			t.Errorf("help without words: %q", line)
		}
	}
}

// FuzzExecute: no line, and no sequence of lines, breaks the machine.
func FuzzExecute(f *testing.F) {
	f.Add("r = VirtualAlloc 0 0x10000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE\nWrite $r c3\nVirtualFree $r 0 MEM_RELEASE")
	f.Add("t = CreateThread 0\nVirtualQuery 0x7ffe0000\nGetWriteWatch 1 0 1 1\nQueryWorkingSet")
	f.Add("r = VirtualAlloc 0x7fff0000 ~0 MEM_TOP_DOWN|0x2000 4\nVirtualLock $r 1\nVirtualUnlock 0xffffffffffffffff 2")
	f.Add("VirtualAlloc2 NULL 0 0x20000 MEM_RESERVE|MEM_RESERVE_PLACEHOLDER 1\nVirtualFree 0x100000 0x1000 0x8002")
	f.Fuzz(func(t *testing.T, text string) {
		s := newSession(t, process.Image{Arch: process.X86, LockMemory: true})
		for i, line := range strings.Split(text, "\n") {
			if i > 50 {
				break
			}
			reply, _ := s.Execute(line)
			if strings.ContainsAny(reply, "\n\r") {
				t.Errorf("%q: reply %q", line, reply)
			}
		}
	})
}

// TestNoise sends random words of the language, most of them nearly right, and bytes that are none.
func TestNoise(t *testing.T) {
	n := 20000
	if testing.Short() {
		n = 4000
	}
	s := newSession(t, process.Image{Arch: process.X64, LockMemory: true})
	rnd := rand.New(rand.NewPCG(1, 1))
	var calls, names []string
	for name := range table {
		calls = append(calls, name)
	}
	for name := range constants {
		names = append(names, name)
	}
	pick := func(list []string) string { return list[rnd.IntN(len(list))] }
	fixed := []string{"0", "1", "0x1000", "0x10000", "$a", "$b", "$a+0x1000", "$b+0xfff", "~0", "0x7ffe0000", "0x50000000",
		"SELF", "P2", "NULL", "MEM_COMMIT", "MEM_RESERVE|MEM_COMMIT", "MEM_RESERVE", "PAGE_READWRITE", "4", "64", "00ff"}
	for range n {
		var b strings.Builder
		if rnd.IntN(3) == 0 {
			b.WriteString(pick([]string{"a = ", "b = ", "P2: ", "P2: a = "}))
		}
		b.WriteString(pick(calls))
		for range rnd.IntN(6) {
			b.WriteByte(' ')
			switch rnd.IntN(8) {
			case 0:
				b.WriteString(pick(names) + "|" + pick(names))
			case 1:
				fmt.Fprintf(&b, "%#x", rnd.Uint64()>>rnd.IntN(64))
			default:
				b.WriteString(pick(fixed))
			}
		}
		reply, errno := s.Execute(b.String())
		if (errno == 0) != (strings.HasPrefix(reply, "OK ") || strings.HasPrefix(reply, "ERR 0 ")) {
			t.Errorf("%s: %q with errno %v", &b, reply, errno)
		}
	}
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for _, line := range bytes.Split(noise, []byte("\n")) {
		if reply, errno := s.Execute(string(line)); errno == 0 && reply != "" {
			t.Errorf("%q: %q", line, reply)
		}
	}
}

// TestNoiseInViews is noise about sections, views, files and programs, nearly all of it right in its kind: whatever comes, nothing
// breaks, and nothing is left when the processes have ended.
func TestNoiseInViews(t *testing.T) {
	const n = 30000
	sys := newSystem(t, 1024, 2048)
	m := process.NewMachine(sys, process.OptIn, process.Listener{})
	files := newTestFiles(sys)
	m.SetFiles(files)
	makeFiles := func() {
		for _, line := range []string{
			`file "/a" size=0x12345 fill=61`, `file "/b" size=100 fill=62`, `file "/empty" size=0 fill=00`,
			`pefile "/k.dll" va=0x1000 chars=IMAGE_SCN_MEM_READ|IMAGE_SCN_MEM_WRITE data=c3`,
			`pefile "/app.exe" va=0x1000 chars=IMAGE_SCN_MEM_READ|IMAGE_SCN_MEM_EXECUTE data=c3 filechars=0x22 dllchars=0x160`,
			`pefile "/old.exe" va=0x1000 chars=IMAGE_SCN_MEM_EXECUTE data=c3 machine=0x14c filechars=0x103 stackreserve=0x800000`,
		} {
			if files.has(strings.Split(line, `"`)[1]) {
				continue
			}
			if err := files.prepare(line); err != nil {
				t.Fatal(err)
			}
		}
	}
	image := process.Image{Arch: process.X64, LockMemory: true}
	begin := func() *Session {
		for _, p := range m.Processes() {
			m.End(p)
		}
		p, err := m.Start(image)
		if err != nil {
			t.Fatal(err)
		}
		return NewSession(m, p, func(_, program string) (*process.Process, error) {
			if program != "" {
				return m.StartProgram(p, process.Image{Executable: program})
			}
			return m.Start(image)
		})
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	// Of a kind of argument the first choices are right somewhere, and taken three times of four.
	words := map[string][2][]string{
		"file":    {{`"/a"`, `"/k.dll"`, `"/app.exe"`, `"/b"`}, {`"/empty"`, `"\none"`, `"/new"`, `""`}},
		"program": {{`"/app.exe"`, `"\old.exe"`}, {`"/k.dll"`, `"/a"`, `"none"`, `"//"`}},
		"name":    {{"0", `"x"`, `"Local\x"`, `"y"`}, {`"Global\x"`, `"a\b"`, `""`, `"../../x"`, `"Local\"`}},
		"opened":  {{"$f", "$g", "0", "~0"}, {"$h", "0x40", "0x44", "-6"}},
		"section": {{"$h", "$i"}, {"$f", "0", "~0", "0x44", "-6"}},
		"address": {{"$v", "$w", "$v+0x1000", "$w+0x10000"}, {"$v-1", "0", "~0", "0x50000000", "0x7ffe0000", "0x7fffffff0000"}},
		"base":    {{"0", "0x50000000"}, {"$v", "0x1000", "~0", "0xffff800000000000", "0x7fffffff0000"}},
		"size":    {{"0", "0x1000", "0x2000"}, {"1", "0x10000", "0x12345", "0x20000", "0x200000", "~0", "0x7fffffffffffffff", "0x100000000"}},
		"offset":  {{"0"}, {"0x10000", "0x1000", "~0"}},
		"high":    {{"0"}, {"1", "0x7fffffff", "~0"}},
		"access": {{"FILE_MAP_READ", "FILE_MAP_WRITE", "FILE_MAP_COPY", "FILE_MAP_ALL_ACCESS"},
			{"FILE_MAP_EXECUTE|FILE_MAP_READ", "0", "8", "FILE_MAP_WRITE|FILE_MAP_LARGE_PAGES", "~0"}},
		"rights": {{"GENERIC_READ", "GENERIC_READ|GENERIC_WRITE"}, {"GENERIC_ALL", "0", "DELETE", "~0", "0xffffffff"}},
		"share":  {{"7"}, {"0", "1", "2", "4", "8"}},
		"how":    {{"3", "4"}, {"1", "2", "5", "0", "6"}},
		"flags":  {{"0", "0x80"}, {"FILE_FLAG_DELETE_ON_CLOSE", "0xffffffff"}},
		"protect": {{"PAGE_READONLY", "PAGE_READWRITE", "PAGE_WRITECOPY"}, {"PAGE_NOACCESS", "PAGE_EXECUTE_READWRITE", "PAGE_EXECUTE_WRITECOPY",
			"PAGE_EXECUTE_READ", "PAGE_EXECUTE", "PAGE_READWRITE|PAGE_GUARD", "0", "~0"}},
		"sec": {{"0", "SEC_COMMIT", "SEC_RESERVE", "SEC_IMAGE"}, {"SEC_IMAGE_NO_EXECUTE", "SEC_COMMIT|SEC_NOCACHE", "SEC_COMMIT|SEC_LARGE_PAGES",
			"SEC_RESERVE|SEC_COMMIT", "SEC_FILE"}},
		"who":  {{"SELF", "P2", "-1"}, {"NULL", "app", "5"}},
		"type": {{"0", "MEM_RESERVE"}, {"MEM_TOP_DOWN", "MEM_REPLACE_PLACEHOLDER", "MEM_LARGE_PAGES", "MEM_COMMIT", "~0"}},
		"free": {{"MEM_RELEASE", "MEM_DECOMMIT"}, {"MEM_RELEASE|MEM_PRESERVE_PLACEHOLDER", "2", "~0"}},
	}
	calls := []string{
		"f = CreateFile file rights share how flags", "g = CreateFile file GENERIC_ALL", "h = CreateFileMapping opened protect|sec high size name",
		"i = CreateFileMapping ~0 protect 0 0x20000 name", "h = CreateFileMapping $g PAGE_READWRITE 0 size name", "i = OpenFileMapping access 1 name",
		"h = CreateFileMapping $g PAGE_READONLY|SEC_IMAGE 0 0 name", "v = MapViewOfFile section access high offset size",
		"w = MapViewOfFile section FILE_MAP_READ 0 0 0", "w = MapViewOfFileEx section access high offset size base",
		"v = MapViewOfFile2 section who offset base size type protect", "w = MapViewOfFile3 section who base offset size type protect",
		"w = VirtualAlloc2 who base 0x2000 MEM_RESERVE|MEM_RESERVE_PLACEHOLDER PAGE_NOACCESS",
		"MapViewOfFile3 section SELF $w 0 0x2000 MEM_REPLACE_PLACEHOLDER protect", "UnmapViewOfFile2 SELF $w 2", "VirtualFree address size free",
		"v = VirtualAlloc 0 0x2000 MEM_RESERVE|MEM_COMMIT PAGE_EXECUTE_READWRITE",
		"UnmapViewOfFile address", "UnmapViewOfFile2 who address 0", "FlushViewOfFile address size", "GetMappedFileName address",
		"NtQuerySection section 1", "NtQuerySection section", "CloseHandle section", "CloseHandle opened", "i = DuplicateHandle section access SELF 1",
		"DuplicateHandle section 0 who 1 2", "SetEndOfFile opened", "SetFilePointerEx opened size 0", "ReadFile opened address size",
		"WriteFile opened address size", "VirtualProtect address size protect", "VirtualAlloc address size MEM_COMMIT protect",
		"VirtualQuery address", "Read address 0x1800", "Write address 00112233", "Execute address", "VirtualLock address 0x1000",
		"VirtualUnlock address 0x1000", "QueryWorkingSetEx address", "ReadProcessMemory who address 0x1100",
		"WriteProcessMemory who address 445566", "CreateProcess program 1", `CreateProcess "prog" 1 program`, "EmptyWorkingSet who",
		"VirtualAlloc address size MEM_RESET protect", "SetHandleInformation section 3 1", "SetHandleInformation section 2 0",
	}
	succeeded := make(map[string]bool)
	var s *Session
	for i := range n {
		switch i % 500 {
		case 0:
			s = begin()
			makeFiles()
		case 250:
			s.Execute("DeleteFile " + words["file"][0][rnd.IntN(4)])
		}
		call := pick(calls...)
		line := pick("", "", "", "P2: ", "app: ")
		for j, word := range strings.Fields(call) {
			parts := strings.Split(word, "|")
			for k, part := range parts {
				if choices, ok := words[part]; ok {
					parts[k] = pick(choices[min(rnd.IntN(4)/3, 1)]...)
				}
			}
			if j > 0 {
				line += " "
			}
			line += strings.Join(parts, "|")
		}
		reply, errno := s.Execute(line)
		if (errno == 0) != (strings.HasPrefix(reply, "OK ") || strings.HasPrefix(reply, "ERR 0 ")) {
			t.Errorf("%s: %q with errno %v", line, reply, errno)
		}
		if strings.HasPrefix(reply, "OK ") {
			succeeded[call] = true
		}
		if i%500 == 499 {
			for _, err := range append(sys.Check(), m.Check()...) {
				t.Fatalf("after %s: %v", line, err)
			}
		}
	}
	for _, call := range calls {
		if !succeeded[call] {
			t.Errorf("%s never succeeded: the test says little about it", call)
		}
	}
	for _, p := range m.Processes() {
		m.End(p)
	}
	files.close()
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

// TestSessionsAtOnce: lines of one session and of several on one machine may be executed at once.
func TestSessionsAtOnce(t *testing.T) {
	s := newSession(t, process.Image{Arch: process.X64})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 100 {
				name := fmt.Sprintf("P%d: ", i%2+2)
				for _, line := range []string{
					fmt.Sprintf("%sr%d = VirtualAlloc 0 0x4000 MEM_RESERVE|MEM_COMMIT PAGE_READWRITE", name, i),
					fmt.Sprintf("%sWrite $r%d+0x3ffe %02x%02x", name, i, n, i),
					fmt.Sprintf("%sEmptyWorkingSet", name),
					fmt.Sprintf("%sReadZero $r%d 0x3ffe", name, i),
				} {
					if reply, errno := s.Execute(line); errno != 0 {
						t.Errorf("%s: %s", line, reply)
					}
				}
				if reply, _ := s.Execute(fmt.Sprintf("%sRead $r%d+0x3ffe 2", name, i)); reply != fmt.Sprintf("OK 0x0 data=%02x%02x", n, i) {
					t.Errorf("read %s", reply)
				}
				if reply, errno := s.Execute(fmt.Sprintf("%sVirtualFree $r%d 0 MEM_RELEASE", name, i)); errno != 0 {
					t.Errorf("free: %s", reply)
				}
			}
		})
	}
	wg.Wait()
}
