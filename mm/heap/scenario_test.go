package heap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The scenarios in testdata are dialogues in the control language: calls with Win32's arguments, without out-pointers,
// and after -> what comes back. Only the fields listed are asserted.

var constants = map[string]uint64{
	"HEAP_NO_SERIALIZE": NoSerialize, "HEAP_ZERO_MEMORY": ZeroMemory, "HEAP_REALLOC_IN_PLACE_ONLY": ReallocInPlaceOnly,
	"HEAP_GENERATE_EXCEPTIONS": GenerateExceptions, "HEAP_CREATE_ENABLE_EXECUTE": CreateEnableExecute,
	"PROCESS_HEAP_REGION": EntryRegion, "PROCESS_HEAP_UNCOMMITTED_RANGE": EntryUncommittedRange,
	"PROCESS_HEAP_ENTRY_BUSY": EntryBusy, "HeapCompatibilityInformation": HeapCompatibilityInformation,
	"HeapEnableTerminationOnCorruption": HeapEnableTerminationOnCorruption,

	"GMEM_FIXED": 0, "GMEM_MOVEABLE": 2, "GMEM_NOCOMPACT": 0x10, "GMEM_NODISCARD": 0x20, "GMEM_ZEROINIT": 0x40,
	"GMEM_MODIFY": 0x80, "GMEM_DISCARDABLE": 0x100, "GMEM_LOWER": 0x1000, "GMEM_NOT_BANKED": 0x1000, "GMEM_DDESHARE": 0x2000,
	"GMEM_NOTIFY": 0x4000, "GMEM_DISCARDED": 0x4000, "GMEM_INVALID_HANDLE": 0x8000,
	"LMEM_FIXED": 0, "LMEM_MOVEABLE": 2, "LMEM_NOCOMPACT": 0x10, "LMEM_NODISCARD": 0x20, "LMEM_ZEROINIT": 0x40,
	"LMEM_MODIFY": 0x80, "LMEM_DISCARDABLE": 0xF00,
	"MEM_COMMIT": 0x1000, "PAGE_READWRITE": 4, "MemoryRegionInfo": 0, "FIRST": 0, "NEXT": 1,
}

// dialogue is a scenario under way.
type dialogue struct {
	space  *fakeSpace
	thread *Thread
	vars   map[string]uint64
	last   uint64 // GetLastError
	entry  ProcessHeapEntry
}

// reply is what a call has answered. failed is the API's own way of saying so: NULL, FALSE, (SIZE_T)-1, a handle back.
type reply struct {
	result uint64
	failed bool
	err    error
	fields map[string]uint64
	data   []byte
}

func (d *dialogue) value(s string) (uint64, error) {
	sum := uint64(0)
	for i, term := range strings.Split(s, "+") {
		v := uint64(0)
		for _, word := range strings.Split(term, "|") {
			w, err := d.word(word)
			if err != nil {
				return 0, err
			}
			if i > 0 && w == 0 && word != "0" {
				return 0, fmt.Errorf("%q added to a value", word)
			}
			v |= w
		}
		sum += v
	}
	return sum, nil
}

func (d *dialogue) word(s string) (uint64, error) {
	if name, ok := strings.CutPrefix(s, "$"); ok {
		v, ok := d.vars[name]
		if !ok {
			return 0, fmt.Errorf("no variable %q", name)
		}
		return v, nil
	}
	if v, ok := constants[s]; ok {
		return v, nil
	}
	return strconv.ParseUint(s, 0, 64)
}

func number(ok bool) uint64 {
	if ok {
		return 1
	}
	return 0
}

// call makes one call with its arguments a.
func (d *dialogue) call(name string, a []uint64) (r reply, err error) {
	t := d.thread
	for len(a) < 4 {
		a = append(a, 0)
	}
	pointer := func(p uint64, err error) { r.result, r.failed, r.err = p, p == 0, err }
	boolean := func(ok bool, err error) { r.result, r.failed, r.err = number(ok), !ok, err }
	sized := func(n uint64, err error) { r.result, r.failed, r.err = n, err != nil, err }
	freed := func(n uint64, err error) { r.result, r.failed, r.err = n, n != 0, err }
	flags := func(n uint32, err error) { r.result, r.failed, r.err = uint64(n), n == MemInvalid, err }
	switch name {
	case "GetProcessHeap":
		pointer(t.GetProcessHeap(), nil)
	case "GetProcessHeaps":
		handles := t.GetProcessHeaps()
		r.result, r.fields = uint64(len(handles)), map[string]uint64{"First": handles[0]}
	case "HeapCreate":
		pointer(t.HeapCreate(uint32(a[0]), a[1], a[2]))
	case "HeapDestroy":
		boolean(t.HeapDestroy(a[0]))
	case "HeapAlloc":
		pointer(t.HeapAlloc(a[0], uint32(a[1]), a[2]))
	case "HeapReAlloc":
		pointer(t.HeapReAlloc(a[0], uint32(a[1]), a[2], a[3]))
	case "HeapFree":
		boolean(t.HeapFree(a[0], uint32(a[1]), a[2]))
	case "HeapSize":
		n, err := t.HeapSize(a[0], uint32(a[1]), a[2])
		r.result, r.failed, r.err = n, n == InvalidSize, err
	case "HeapValidate":
		boolean(t.HeapValidate(a[0], uint32(a[1]), a[2]))
	case "HeapWalk":
		return d.walk(a[0], a[1] == 0)
	case "HeapQueryInformation":
		v, _, err := t.HeapQueryInformation(a[0], uint32(a[1]), a[2])
		r.failed, r.err, r.fields = err != nil, err, map[string]uint64{"Value": uint64(v)}
	case "HeapSetInformation":
		boolean(t.HeapSetInformation(a[0], uint32(a[1]), uint32(a[2])))
	case "GlobalAlloc":
		pointer(t.GlobalAlloc(uint32(a[0]), a[1]))
	case "LocalAlloc":
		pointer(t.LocalAlloc(uint32(a[0]), a[1]))
	case "GlobalReAlloc":
		pointer(t.GlobalReAlloc(a[0], a[1], uint32(a[2])))
	case "LocalReAlloc":
		pointer(t.LocalReAlloc(a[0], a[1], uint32(a[2])))
	case "GlobalFree":
		freed(t.GlobalFree(a[0]))
	case "LocalFree":
		freed(t.LocalFree(a[0]))
	case "GlobalSize":
		sized(t.GlobalSize(a[0]))
	case "LocalSize":
		sized(t.LocalSize(a[0]))
	case "GlobalFlags":
		flags(t.GlobalFlags(a[0]))
	case "LocalFlags":
		flags(t.LocalFlags(a[0]))
	case "GlobalLock":
		pointer(t.GlobalLock(a[0]))
	case "LocalLock":
		pointer(t.LocalLock(a[0]))
	case "GlobalUnlock":
		boolean(t.GlobalUnlock(a[0]))
	case "LocalUnlock":
		boolean(t.LocalUnlock(a[0]))
	case "GlobalHandle":
		pointer(t.GlobalHandle(a[0]))
	case "LocalHandle":
		pointer(t.LocalHandle(a[0]))
	case "SetLastError":
		d.last = a[0]
	default:
		return d.memory(name, a)
	}
	return r, nil
}

// memory makes the calls that are the space's rather than a heap's.
func (d *dialogue) memory(name string, a []uint64) (r reply, err error) {
	switch name {
	case "VirtualAlloc":
		if a[0] != 0 || a[2] != 0x1000 {
			return r, errors.New("this VirtualAlloc is not one the runner knows")
		}
		base, err := d.space.Reserve(a[1], uint32(a[3]))
		if err == nil {
			err = d.space.Commit(base, a[1], uint32(a[3]))
		}
		return reply{result: base}, err
	case "QueryVirtualMemoryInformation":
		base, size, _ := d.space.region(a[0])
		return reply{fields: map[string]uint64{"AllocationBase": base, "RegionSize": size}}, nil
	case "Read", "ReadZero":
		b := make([]byte, a[1])
		if err := d.space.Read(a[0], b); err != nil {
			return r, err
		}
		if name == "ReadZero" {
			for i, c := range b {
				if c != 0 {
					return r, fmt.Errorf("byte %d is %#x", i, c)
				}
			}
		}
		return reply{data: b}, nil
	}
	return r, fmt.Errorf("call %q is unknown", name)
}

func (d *dialogue) walk(handle uint64, first bool) (r reply, err error) {
	if first {
		d.entry = ProcessHeapEntry{}
	}
	ok, err := d.thread.HeapWalk(handle, &d.entry)
	e := d.entry
	return reply{result: number(ok), failed: !ok, err: err, fields: map[string]uint64{
		"wFlags": uint64(e.Flags), "lpData": e.Data, "cbData": e.Size, "cbOverhead": uint64(e.Overhead),
		"iRegionIndex": uint64(e.RegionIndex)}}, nil
}

// line runs one line and says what is not as it should be.
func (d *dialogue) line(line string) error {
	said, want, ok := strings.Cut(line, " -> ")
	if !ok {
		return errors.New("no ->")
	}
	name, rest, assigned := strings.Cut(said, " = ")
	if !assigned {
		rest = said
	}
	words := strings.Fields(rest)
	args := make([]uint64, len(words)-1)
	for i, w := range words[1:] {
		v, err := d.value(w)
		if err != nil {
			return err
		}
		args[i] = v
	}
	r, err := d.call(words[0], args)
	if err != nil {
		return err
	}
	var e *Error
	switch {
	case errors.As(r.err, &e):
		d.last = uint64(e.Code)
	case r.err != nil:
		return r.err
	}
	if assigned {
		d.vars[name] = r.result
	}
	return d.expect(r, strings.Fields(want))
}

func (d *dialogue) expect(r reply, want []string) error {
	status, fields := want[0], want[1:]
	switch {
	case status == "ERR" && !r.failed:
		return fmt.Errorf("succeeded with %#x", r.result)
	case status == "ERR" && fields[0] == "*":
		fields = fields[1:]
	case status == "ERR":
		code, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || d.last != code {
			return fmt.Errorf("last error is %d", d.last)
		}
		fields = fields[2:]
	case status != "OK":
		return fmt.Errorf("unknown status %q", status)
	case r.failed && !strings.Contains(strings.Join(fields, " "), "Result="):
		return fmt.Errorf("failed: %v", r.err)
	}
	mask := ^uint64(0)
	for _, f := range fields {
		if m, ok := strings.CutPrefix(f, "ResultMask=~"); ok {
			v, err := d.value(m)
			if err != nil {
				return err
			}
			mask = ^v
			continue
		}
		if err := d.field(r, f, mask); err != nil {
			return err
		}
	}
	return nil
}

func (d *dialogue) field(r reply, f string, mask uint64) error {
	i := strings.IndexAny(f, "!<>=")
	if i < 0 {
		return fmt.Errorf("field %q is not understood", f)
	}
	name, op, text := f[:i], f[i:i+1], f[i+1:]
	if op != "=" {
		op, text = f[i:i+2], f[i+2:]
	}
	if name == "data" {
		if got := fmt.Sprintf("%x", r.data); got != text {
			return fmt.Errorf("data is %s", got)
		}
		return nil
	}
	want, err := d.value(text)
	if err != nil {
		return err
	}
	var got uint64
	switch name {
	case "Result":
		got = r.result & mask
	case "LastError":
		got = d.last
	case "Align":
		got, want = r.result%want, 0
	case "Handle":
		unit := 2 * d.space.ptr
		got = number(r.result%unit == d.space.ptr)
		if want == 0 && r.result%unit != 0 {
			return fmt.Errorf("%#x is no block's address", r.result)
		}
	default:
		v, ok := r.fields[name]
		if !ok {
			return fmt.Errorf("no field %q", name)
		}
		got = v
	}
	holds := map[string]bool{"=": got == want, "!=": got != want, "<=": got <= want, ">=": got >= want}[op]
	if !holds {
		return fmt.Errorf("%s is %#x", f, got)
	}
	return nil
}

// prime brings the front end up for blocks of 12 bytes: [lfh-primed].
func prime(t *testing.T, thread *Thread) {
	t.Helper()
	var blocks []uint64
	for range lfhActivation {
		p, err := thread.HeapAlloc(thread.GetProcessHeap(), 0, 12)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, p)
	}
	for _, p := range blocks {
		if ok, err := thread.HeapFree(thread.GetProcessHeap(), 0, p); !ok {
			t.Fatal(err)
		}
	}
}

// heapOf makes the heaps of a process with pointers of ptr bytes.
func heapOf(t testing.TB, ptr int, options Options) (*fakeSpace, *Thread) {
	t.Helper()
	space := newFakeSpace(ptr)
	if options.Random == nil {
		options.Random = seeded(1)
	}
	heaps, err := New(space, options)
	if err != nil {
		t.Fatal(err)
	}
	return space, heaps.Thread(context.Background())
}

func TestScenarios(t *testing.T) {
	lines := 0
	for _, file := range []string{"heap.txt", "global-local.txt"} {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, scenario := range strings.Split(string(text), "# scenario: ")[1:] {
			title, body, _ := strings.Cut(scenario, "\n")
			name, tags, _ := strings.Cut(title, " ")
			t.Run(name, func(t *testing.T) {
				ptr := 8
				if strings.Contains(tags, "[arch=x86]") {
					ptr = 4
				}
				space, thread := heapOf(t, ptr, Options{})
				if strings.Contains(tags, "[lfh-primed]") {
					prime(t, thread)
				}
				d := &dialogue{space: space, thread: thread, vars: map[string]uint64{}}
				for n, line := range strings.Split(body, "\n") {
					if line = strings.TrimSpace(line); line == "" {
						continue
					}
					lines++
					if !strings.HasPrefix(line, "SetLastError") && n > 0 {
						if prev := strings.Split(body, "\n")[n-1]; !strings.HasPrefix(prev, "SetLastError") {
							d.last = 0xdeadbeef
						}
					}
					if err := d.line(line); err != nil {
						t.Fatalf("%s\n\t%v", line, err)
					}
				}
				for _, h := range thread.GetProcessHeaps() {
					if ok, _ := thread.HeapValidate(h, 0, 0); !ok {
						t.Errorf("heap %#x is damaged", h)
					}
				}
			})
		}
	}
	if lines < 500 {
		t.Errorf("%d lines ran; the files have more", lines)
	}
}
