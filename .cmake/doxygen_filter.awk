# awk -f doxygen_filter.awk HEADER: the header as Doxygen reads it.
#
# - The comment that a header begins with is the file's.
# - A comment stands for all declarations up to the next comment or empty line, as readers take it.
# - What is in a namespace detail, and what only friends see, is left out, as is the inline namespace of compiler flags
#   (abi.hpp); the rest belongs to the group of the header's folder.
#
# The headers are as clang-format leaves them: a declaration in a class begins at two blanks, one outside at none.

function group_of(file) {
  if (!match(file, /meo\/[a-z]+\/[^\/]*$/)) return "shared"
  sub(/\/[^\/]*$/, "", file)
  sub(/.*\//, "", file)
  return file
}

/^\/\/\/ / && !commented { print "/// @file"; commented = 1 }
/^namespace .*detail \{$/ { print "/// @cond"; hidden = 1 }
/^namespace meo::inline MEO_ABI/ {
  sub(/::inline MEO_ABI/, "")
  print
  if (!hidden) {
    print "/// @addtogroup " group_of(FILENAME) "\n/// @{"
    grouped = 1
  }
  next
}
/^}  \/\/ namespace meo/ && grouped { print "/// @}" }

/^ *$/ { comment = ""; ended = 0 }
/^ *\/\/\/ / {
  if (!in_comment) comment = ""
  comment = comment $0 "\n"
  in_comment = 1
  ended = 0
}
/operator==.*= default;/ { print "/// Whether all that they hold is equal." }
/^( |  )?[^ \/}#]/ && !/^ (private|public|protected):/ {
  if (ended && comment != "" && !/\/\/\/</) printf "%s", comment
}
!/^ *\/\// && NF {
  in_comment = 0
  ended = /[;}]( *\/\/.*)?$/
}
{ print }
/^}  \/\/ namespace .*detail$/ { print "/// @endcond"; hidden = 0 }
