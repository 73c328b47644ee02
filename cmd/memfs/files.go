package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"memfs/mm/process"
)

// The verbs that look at files and steer them.

// newSteerCommand is a verb that moves pages of a mount, or of what lies below some paths.
func newSteerCommand(verb, short, long string) *cobra.Command {
	timeout := longTimeout
	c := &cobra.Command{
		Use:   verb + " [flags] [PATH...]",
		Short: short,
		Long: long + "\nA path is a file, a directory, which means all files below it, or a mount, which means every page that there\n" +
			"is; without one it is the mount of the current directory. The answers say how many pages were moved.",
		Example: fmt.Sprintf("  memfs %[1]s /tmp/m\n  memfs %[1]s /tmp/m/big.iso /tmp/m/data", verb),
		Args:    somePaths,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				p, err := locate(".")
				if err != nil {
					return err
				}
				p.rel = "."
				return p.steer(c.OutOrStdout(), verb, timeout, false)
			}
			return eachPath(args, func(p *place) error { return p.steer(c.OutOrStdout(), verb, timeout, len(args) > 1) })
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for each")
	return c
}

func newTrimCommand() *cobra.Command {
	return newSteerCommand("trim", "Unmap pages from the programs, so that the next touch of each is a fault",
		"trim unmaps pages from the host kernel's cache, then writes those that are modified to the page file.")
}

func newFlushCommand() *cobra.Command {
	return newSteerCommand("flush", "Write modified pages to the page file",
		"flush writes pages to the page file that it does not have yet. They stay in memory.")
}

// eachPath does something with each path, whatever becomes of those before; the last failure is the verb's.
func eachPath(paths []string, do func(*place) error) (failed error) {
	for _, path := range paths {
		p, err := locate(path)
		if err == nil {
			err = do(p)
		}
		if err != nil {
			if failed != nil {
				printWarning("%s", oneLine(failed))
			}
			failed = err
		}
	}
	return failed
}

// steer has one command carried out on what the path is. named says that its name goes before the answer.
func (p *place) steer(w io.Writer, command string, timeout time.Duration, named bool) error {
	name := "ctl"
	if folder, ok := p.process(); ok && folder != "files" {
		return fmt.Errorf("%s: not a file; `memfs call %s EmptyWorkingSet` trims a process", p.path, folder)
	}
	if p.rel != "." || command != "trim" && command != "flush" {
		dir, prefix, err := p.controls()
		if err != nil {
			return err
		}
		name = dir + "/" + prefix + "ctl"
	}
	answer, err := p.order(name, command, timeout)
	if err != nil {
		return err
	}
	if named {
		answer = p.path + ": " + answer
	}
	_, err = fmt.Fprintln(w, answer)
	return err
}

func newPinCommand() *cobra.Command {
	off := false
	c := &cobra.Command{
		Use:   "pin [flags] PATH...",
		Short: "Keep the pages of files in memory, as VirtualLock does",
		Long: "pin keeps the pages of files in memory and in the working set. They may be half of the memory at most. Of a\n" +
			"directory it pins all files below it, and those that are made there later. It is kept as the extended\n" +
			"attribute user.memfs.pin, so that cp -a carries it.",
		Example: "  memfs pin /tmp/m/index.db\n  memfs pin --off /tmp/m/index.db",
		Args:    severalPaths,
		RunE: func(c *cobra.Command, args []string) error {
			command := "pin"
			if off {
				command = "unpin"
			}
			return eachPath(args, func(p *place) error { return p.steer(c.OutOrStdout(), command, longTimeout, len(args) > 1) })
		},
	}
	c.Flags().BoolVar(&off, "off", false, "let them go again")
	return c
}

func newProtectCommand() *cobra.Command {
	below := false
	c := &cobra.Command{
		Use:   "protect [flags] PATH [PROTECTION]",
		Short: "Show or set what may be done with the contents of a file",
		Long: "protect shows the protection of a file, or sets it: a PAGE_ constant that holds for everybody, root included.\n" +
			"Under PAGE_NOACCESS the file cannot be opened, without WRITE not written or truncated, without EXECUTE not\n" +
			"executed. inherit gives it that of its directory. The protection of a directory is inherited by what is made\n" +
			"in it later; with --below everything that is there already gets it too. It is kept as the extended attribute\n" +
			"user.memfs.protection, so that cp -a carries it.",
		Example: "  memfs protect /tmp/m/config\n  memfs protect /tmp/m/config PAGE_READONLY\n" +
			"  memfs protect --below /tmp/m/data PAGE_READWRITE",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return fileProtections, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 || args[0] == "":
				return usageError("protect: no path given; usage: %s", c.UseLine())
			case len(args) > 2:
				return usageError("protect takes a path and a protection, but %d arguments were given; usage: %s", len(args), c.UseLine())
			case len(args) == 1 && below:
				return usageError("protect: --below wants a protection to set")
			case len(args) == 2 && !isFileProtection(args[1]):
				return usageError("protect %q: there are %s", args[1], strings.Join(fileProtections, " "))
			}
			p, err := locate(args[0])
			if err != nil {
				return err
			}
			dir, prefix, err := p.controls()
			if err != nil {
				return err
			}
			switch {
			case below && prefix == "":
				return fmt.Errorf("%s: --below is for directories", p.path)
			case below:
				_, err = p.order(dir+"/:ctl", "protect "+args[1], longTimeout)
			case len(args) == 2 && args[1] == "inherit" && p.rel == ".":
				return fmt.Errorf("%s: the root of the mount is in no directory that it could inherit from", p.path)
			case len(args) == 2:
				err = p.set(dir+"/"+prefix+"protection", args[1])
			default:
				err = p.show(c.OutOrStdout(), dir+"/"+prefix+"protection", false)
			}
			return err
		},
	}
	c.Flags().BoolVar(&below, "below", false, "set it for all that is in the directory too")
	return c
}

// fileProtections are what the protection of a file can be.
var fileProtections = []string{"PAGE_NOACCESS", "PAGE_READONLY", "PAGE_READWRITE", "PAGE_WRITECOPY", "PAGE_EXECUTE",
	"PAGE_EXECUTE_READ", "PAGE_EXECUTE_READWRITE", "PAGE_EXECUTE_WRITECOPY", "inherit"}

// isFileProtection says whether a word is one of them; a number will do.
func isFileProtection(word string) bool {
	p, ok := process.ParseProtection(word)
	return ok && p == p.Base() || slices.Contains(fileProtections, word)
}

// severalPaths is the cobra.PositionalArgs of the verbs that need at least one path.
func severalPaths(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError("%s: no path given; usage: %s", c.Name(), c.UseLine())
	}
	return somePaths(c, args)
}

// exactPath is that of the verbs that need just one.
func exactPath(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError("%s takes one path, but %d arguments were given; usage: %s", c.Name(), len(args), c.UseLine())
	}
	return somePaths(c, args)
}

func newPagesCommand() *cobra.Command {
	var out output
	asMap := false
	c := &cobra.Command{
		Use:   "pages [flags] FILE",
		Short: "Show every page of a file: its state, its frame, where its copy is",
		Long: "pages shows the pages of a file, a line each; with --map a character each: A active, S standby, M modified,\n" +
			"P in a page file, . a hole. Of a process, named by its folder in .proc, it shows the page table.",
		Example: "  memfs pages /tmp/m/small\n  memfs pages --map /tmp/m/small\n  memfs pages /tmp/m/.proc/demo",
		Args:    exactPath,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := out.asJSON()
			if err != nil {
				return err
			}
			p, err := locate(args[0])
			if err != nil {
				return err
			}
			if name, ok := p.process(); ok && name != "files" {
				if asMap {
					return usageError("pages: --map is for files; a process's pages are far apart")
				}
				if !p.has(name) {
					return fmt.Errorf("%s: neither a file of the mount nor a process", p.path)
				}
				return p.show(c.OutOrStdout(), name+"/pagemap", asJSON)
			}
			dir, prefix, err := p.controls()
			switch {
			case err != nil:
				return err
			case prefix != "":
				return fmt.Errorf("%s: a directory; `memfs files %s` shows the files in it", p.path, p.path)
			case asMap:
				return p.show(c.OutOrStdout(), dir+"/map", asJSON)
			}
			return p.show(c.OutOrStdout(), dir+"/pages", asJSON)
		},
	}
	out.register(c)
	c.Flags().BoolVar(&asMap, "map", false, "a character a page")
	return c
}

// fileInfo is what files takes from a file's info.json.
type fileInfo struct {
	Path      string `json:"path"`
	Size      uint64 `json:"size_bytes"`
	Committed uint64 `json:"committed_pages"`
	Active    uint64 `json:"active_pages"`
	Standby   uint64 `json:"standby_pages"`
	Modified  uint64 `json:"modified_pages"`
	Paged     uint64 `json:"paged_pages"`
	Host      uint64 `json:"host_cached_pages"`
	Priority  uint64 `json:"priority"`
	Pinned    bool   `json:"pinned"`
	NoSwap    bool   `json:"noswap"`
	Most      uint64 `json:"working_set_max_pages"` // 0 is no limit
	// Protection is a PAGE_ constant.
	Protection string `json:"protection"`
}

// shortProtections are the protections in System Informer's letters.
var shortProtections = map[string]string{"PAGE_NOACCESS": "NA", "PAGE_READONLY": "R", "PAGE_READWRITE": "RW",
	"PAGE_WRITECOPY": "WC", "PAGE_EXECUTE": "X", "PAGE_EXECUTE_READ": "RX", "PAGE_EXECUTE_READWRITE": "RWX",
	"PAGE_EXECUTE_WRITECOPY": "WCX"}

// flags is a file's rule in letters.
func (f *fileInfo) flags() string {
	s := ""
	if f.Pinned {
		s += "pin,"
	}
	if f.NoSwap {
		s += "noswap,"
	}
	if f.Most > 0 {
		s += "ws=" + roundSize(f.Most*slotBytes) + ","
	}
	if s == "" {
		return "-"
	}
	return strings.TrimSuffix(s, ",")
}

// fileOrders are what files can be sorted by.
var fileOrders = map[string]func(f *fileInfo) uint64{
	"path": nil, "size": func(f *fileInfo) uint64 { return f.Size }, "committed": func(f *fileInfo) uint64 { return f.Committed },
	"active": func(f *fileInfo) uint64 { return f.Active }, "standby": func(f *fileInfo) uint64 { return f.Standby },
	"modified": func(f *fileInfo) uint64 { return f.Modified }, "paged": func(f *fileInfo) uint64 { return f.Paged },
}

func newFilesCommand() *cobra.Command {
	var out output
	order, most := "path", 0
	c := &cobra.Command{
		Use:   "files [flags] [PATH]",
		Short: "List files with the states of their pages",
		Long: "files lists the regular files below a directory, or one file: how large each is, and how many of its pages are\n" +
			"committed, active, standby, modified, in a page file, and in the host kernel's cache. Files that may not be\n" +
			"read are left out, and counted.",
		Example: "  memfs files /tmp/m\n  memfs files --sort active -n 10 /tmp/m",
		Args:    onePath,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := out.asJSON()
			if err != nil {
				return err
			}
			by, known := fileOrders[order]
			if !known {
				return usageError("--sort %q: there are path size committed active standby modified paged", order)
			}
			if most < 0 {
				return usageError("--lines %d: not a number of files", most)
			}
			p, err := locate(here(args))
			if err != nil {
				return err
			}
			files, skipped, err := p.files()
			if err != nil {
				return err
			}
			if by != nil {
				slices.SortStableFunc(files, func(a, b fileInfo) int { return compare(by(&b), by(&a)) })
			}
			if most > 0 && len(files) > most {
				files = files[:most]
			}
			if skipped > 0 {
				printWarning("%d files and directories were left out: they may not be read", skipped)
			}
			if asJSON {
				if files == nil {
					files = []fileInfo{} // an empty array, not null
				}
				return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"v": 1, "files": files})
			}
			_, err = c.OutOrStdout().Write(filesTable(files))
			return err
		},
	}
	out.register(c)
	c.Flags().StringVar(&order, "sort", order, "`COLUMN`: path size committed active standby modified paged")
	c.Flags().IntVarP(&most, "lines", "n", most, "show so many files at most; 0 is all")
	_ = c.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(
		[]string{"path", "size", "committed", "active", "standby", "modified", "paged"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func filesTable(files []fileInfo) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%9s %9s %9s %9s %9s %9s %9s %4s %-10s %-4s %s\n",
		"Size", "Committed", "Active", "Standby", "Modified", "Paged", "Host", "Prio", "Rule", "Prot", "File")
	for i := range files {
		f := &files[i]
		fmt.Fprintf(&b, "%9s %9d %9d %9d %9d %9d %9d %4d %-10s %-4s %s\n", roundSize(f.Size), f.Committed, f.Active, f.Standby,
			f.Modified, f.Paged, f.Host, f.Priority, f.flags(), shortProtections[f.Protection], printable(f.Path))
	}
	return b.Bytes()
}

// printable shows a file's name on one line.
func printable(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0 {
		return name
	}
	return fmt.Sprintf("%q", name)
}

// files reads the info of every regular file below the path.
func (p *place) files() (files []fileInfo, skipped int, err error) {
	root := filepath.Join(p.dir, "..", p.rel)
	err = p.within(longTimeout, func() error {
		return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil && path == root:
				return fmt.Errorf("%s: %s", p.path, reason(err))
			case err != nil:
				skipped++
				return nil
			case path == p.dir:
				return fs.SkipDir
			case !d.Type().IsRegular():
				return nil
			}
			rel, err := filepath.Rel(filepath.Join(p.dir, ".."), path)
			if err != nil {
				return err
			}
			at := *p
			at.rel = rel
			dir, _, err := at.controls()
			if err != nil {
				return nil // removed meanwhile
			}
			text, err := os.ReadFile(filepath.Join(p.dir, dir, "info.json"))
			if err != nil {
				skipped++
				return nil
			}
			f := fileInfo{Path: rel}
			if err := json.Unmarshal(text, &f); err != nil {
				return fmt.Errorf("%s: %w", rel, err)
			}
			files = append(files, f)
			return nil
		})
	})
	return files, skipped, err
}
