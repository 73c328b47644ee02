package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHeaps looks at a process's heaps as a user does: the folder, its files, and what they say as the heaps change.
func TestHeaps(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M"})
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	heaps := m.path(".proc/p/heaps")
	wantNames := func(want string) {
		t.Helper()
		var names []string
		list, err := os.ReadDir(heaps)
		must(t, err)
		for _, e := range list {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("heaps has %q, want %q", got, want)
		}
	}
	wantNames("1 summary summary.json")
	_, err := m.call(t, "p", "h = HeapCreate HEAP_CREATE_ENABLE_EXECUTE 0 0", "a = HeapAlloc $h 0 1000", "b = HeapAlloc $h 0 0x200000",
		"g = GlobalAlloc GMEM_MOVEABLE 77", "GlobalLock $g")
	must(t, err)
	for range 3 {
		_, err = m.call(t, "p", strings.Repeat("HeapAlloc $h 0 40\n", 20))
		must(t, err)
	}
	wantNames("1 2 summary summary.json")

	var all struct {
		Heaps []struct {
			Number, Handle             uint64
			Busy                       uint64 `json:"busy_blocks"`
			Bytes                      uint64 `json:"busy_bytes"`
			Large                      uint64 `json:"large_blocks"`
			Reserved                   uint64 `json:"reserved_bytes"`
			Committed, Overhead, Flags any
			FrontEnd                   string `json:"front_end"`
		}
	}
	for _, name := range []string{".proc/p/heaps.json", ".proc/p/heaps/summary.json"} {
		must(t, json.Unmarshal(mustRead(t, m.path(name)), &all))
		if len(all.Heaps) != 2 || all.Heaps[0].Busy != 1 || all.Heaps[0].Bytes != 77 || all.Heaps[1].Busy != 62 ||
			all.Heaps[1].Bytes != 1000+0x200000+60*40 || all.Heaps[1].Large != 1 || all.Heaps[1].FrontEnd != "LFH" {
			t.Errorf("%s: %+v", name, all)
		}
	}
	if got := string(mustRead(t, m.path(".proc/p/heaps/summary"))); strings.Count(got, "\n") != 3 || !strings.Contains(got, "CREATE_ENABLE_EXECUTE") {
		t.Errorf("summary is\n%s", got)
	}
	if got := string(mustRead(t, m.path(".proc/p/heaps/2/info"))); !strings.Contains(got, "BusyBlocks:           62\n") || !strings.Contains(got, "       48           ") {
		t.Errorf("info is\n%s", got)
	}
	walk := string(mustRead(t, m.path(".proc/p/heaps/1/walk")))
	if !strings.Contains(walk, "moveable ") || !strings.Contains(walk, "          77 ") {
		t.Errorf("walk is\n%s", walk)
	}
	walk = string(mustRead(t, m.path(".proc/p/heaps/2/walk")))
	if strings.Count(walk, "\nbusy ") != 62 || !strings.Contains(walk, "     2097152 ") || !strings.Contains(walk, "\nuncommitted ") {
		t.Errorf("walk is\n%s", walk)
	}
	maps := string(mustRead(t, m.path(".proc/p/maps")))
	for _, want := range []string{" PAGE_READWRITE .* Heap 1\n", " PAGE_EXECUTE_READWRITE .* Heap 2\n",
		" PAGE_EXECUTE_READWRITE .* Heap 2 block\n", " Global handles\n"} {
		if !regexp.MustCompile(want).MatchString(maps) {
			t.Errorf("maps has no %q:\n%s", want, maps)
		}
	}

	_, _ = m.call(t, "p", "Write $h+0x78 4141414141414141")
	if got := string(mustRead(t, m.path(".proc/p/heaps/summary"))); !strings.Contains(got, "damaged at ") {
		t.Errorf("the summary of a damaged heap is\n%s", got)
	}
	mustRead(t, m.path(".proc/p/heaps/2/info"))
	mustRead(t, m.path(".proc/p/heaps/2/walk"))
	_, err = m.call(t, "p", "HeapDestroy $h")
	wantErrno(t, "destroying a damaged heap", err, unix.EFAULT)
	wantNames("1 summary summary.json")
	if _, err := os.Stat(m.path(".proc/p/heaps/2")); !os.IsNotExist(err) {
		t.Errorf("a heap that is no more: %v", err)
	}
	wantErrno(t, "writing to a summary", os.WriteFile(m.path(".proc/p/heaps/summary"), []byte("x"), 0), unix.EACCES)
	must(t, os.Remove(m.path(".proc/p")))
}

// TestHeapChecking: the words of gflags in a process's name.
func TestHeapChecking(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M"})
	for _, c := range []struct{ name, write, reply string }{
		{"plain", "Write $p+20 41", "OK 0x1"},                              // inside the block's last unit: nobody notices
		{"tails@htc", "Write $p+20 41", "EXC 0xC0000374"},                  // noticed when it is freed
		{"pages@hpa", "Write $p+32 41", "EXC 0xC0000005 write 0x"},         // noticed at once
		{"pages@x86,hpa", "Write $p+24 41", "EXC 0xC0000005 write 0x"},     // blocks of 8 bytes there
		{"all@hvc,terminate", "Write $p+20 41", "EXC 0xC0000374"},          // and the process is gone
		{"freed@hpa", "HeapFree $h 0 $p\nWrite $p 41", "EXC 0xC0000005 w"}, // its pages are away
	} {
		must(t, os.Mkdir(m.path(".proc", c.name), 0o755))
		replies, _ := m.call(t, c.name, "h = GetProcessHeap", "p = HeapAlloc $h 0 20", c.write)
		if last := replies[len(replies)-1]; strings.HasPrefix(last, "OK") {
			replies, _ = m.call(t, c.name, "HeapFree $h 0 $p")
		}
		if last := replies[len(replies)-1]; !strings.HasPrefix(last, c.reply) {
			t.Errorf("%s: %q, want %s", c.name, last, c.reply)
		}
	}
	replies, err := m.call(t, "all@hvc,terminate", "HeapAlloc $h 0 1")
	wantErrno(t, "a call of a process that has been terminated", err, unix.EACCES)
	if replies[0] != "ERR 5 ERROR_ACCESS_DENIED" {
		t.Errorf("it is told %q", replies)
	}
	if got := string(mustRead(t, m.path(".proc/all@hvc,terminate/status"))); !strings.Contains(got, "ExitStatus:     c0000374\n") {
		t.Errorf("its status is\n%s", got)
	}
	for _, name := range []string{"status", "maps", "pagemap", "heaps/summary", "heaps.json"} {
		mustRead(t, m.path(".proc/all@hvc,terminate", name))
	}
	must(t, os.Remove(m.path(".proc/all@hvc,terminate")))
}

// heapUser is a shell program that allocates, writes, reads and frees blocks of a heap that others use as well. It keeps
// its blocks in variables of its own and checks what is in them.
const heapUser = `
set -eu
exec 3<>"$1/ctl"
me=$2
say() { printf '%s\n' "$@" >&3; reply=$(dd bs=65536 count=1 status=none <&3); }
n=0
while [ $n -lt $3 ]; do
	k=$((n % 7))
	size=$((1 << (n % 12)))
	say "v${me}_$k = HeapAlloc \$h HEAP_ZERO_MEMORY $((size + 16))" "Write \$v${me}_$k $(printf '%08x%08x' $me $n)" \
		"HeapValidate \$h 0 \$v${me}_$k" "v${me}_$k = HeapReAlloc \$h 0 \$v${me}_$k $((size + 16 + n % 3 * 400))" \
		"Read \$v${me}_$k 8" "m$me = GlobalAlloc GHND $((size + 1))" "p$me = GlobalLock \$m$me" "Write \$p$me aa" \
		"GlobalFree \$m$me" "HeapFree \$h 0 \$v${me}_$k"
	case $reply in
	*ERR*|*EXC*) echo "$reply" >&2; exit 1;;
	*data=$(printf '%08x%08x' $me $n)*) ;;
	*) echo "read something else: $reply" >&2; exit 1;;
	esac
	n=$((n + 1))
done
`

// TestHeapOfManyPrograms has several real programs use one process's heaps at once, and others watch, while pages are
// trimmed away underneath.
func TestHeapOfManyPrograms(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "256M"})
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	_, err := m.call(t, "p", "h = HeapCreate 0 0 0")
	must(t, err)
	stop := m.trimLoop(0)
	const programs = 6
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	results := make(chan error, programs+2)
	for i := range programs {
		go func() {
			out, err := exec.Command("sh", "-c", heapUser, "heapuser", m.path(".proc/p"), fmt.Sprint(i+1), fmt.Sprint(rounds)).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("program %d: %w\n%s", i, err, out)
			}
			results <- err
		}()
	}
	for _, name := range []string{"summary", "2/walk"} {
		go func() {
			script := fmt.Sprintf("for i in $(seq %d); do cat '%s' > /dev/null || exit 1; done", rounds, m.path(".proc/p/heaps", name))
			out, err := exec.Command("sh", "-c", script).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("watching %s: %w\n%s", name, err, out)
			}
			results <- err
		}()
	}
	for range programs + 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	stop()
	replies, err := m.call(t, "p", "HeapValidate $h 0 0", "q = GetProcessHeap", "HeapValidate $q 0 0", "HeapSummary $h 0", "HeapSummary $q 0")
	must(t, err)
	for i, want := range []string{"OK 0x1", "OK 0x", "OK 0x1", "OK 0x1 cb=40 cbAllocated=0 ", "OK 0x1 cb=40 cbAllocated=0 "} {
		if !strings.HasPrefix(replies[i], want) {
			t.Errorf("afterwards: %q, want %s", replies[i], want)
		}
	}
}
